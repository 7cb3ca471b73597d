"""The `train` stage: from tokens and a mixture to a checkpoint. Pretraining and mid-training differ in config only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.mixture import Mixture
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact, folder_stamp
from megatron_prism.pipeline.stage import Stage
from megatron_prism.planning.pipeline_split import describe_split
from megatron_prism.platform.console import get_logger, is_rank_zero
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.prolonging import (
    lineage_of,
    missing_state,
    resumable_steps,
    with_schedule_length,
)
from megatron_prism.training.stopping import may_stop

log = get_logger(__name__)


@dataclass
class Train(TrainConfig, Stage):
    """Inputs: `tokens`, `tokenizer`, and optionally `init`, a train or import artifact whose weights to start from."""

    kind: ClassVar[str] = "train"
    version: ClassVar[int] = 3  # version 2 counted the layout as part of the config
    resumable: ClassVar[bool] = True
    stoppable: ClassVar[bool] = True

    @property
    def world_size(self) -> int:
        return self.parallel.world_size

    def identity(self) -> dict[str, Any]:
        """The config, with the mixture's weights in place of its name, and the sizes and times of `init_from`'s files.

        An edited mixture or an edited model folder therefore gives another fingerprint.
        """
        files = folder_stamp(Path(self.init_from)) if self.init_from else []
        named = {"mixture": Mixture.load(self.mixture).weights, "init_files": files}
        return with_schedule_length(super().identity(), self) | named

    def remarks(self) -> list[str]:
        split = describe_split(
            self.trained_architecture, self.layout, self.batch.sequence_length, self.recompute
        )
        return ([split] if self.parallel.is_uneven else []) + self.megatron.settings()

    def lineage(self, inputs: Mapping[str, str]) -> str | None:
        return lineage_of(self, inputs)

    def progress(self, folder: Path) -> int:
        return resumable_steps(folder, self.steps)

    def why_not_continued(self, folder: Path) -> str:
        return missing_state(folder, self.steps)

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        from megatron_prism.data.text_record import check_model, check_tokens
        from megatron_prism.data.tokenizer import Tokenizer
        from megatron_prism.platform.process_groups import session
        from megatron_prism.training.training_run import train_on_text

        if is_rank_zero():
            if mismatch := self.schedule.mismatch(self.steps):
                log.warning(mismatch)
            for remark in self.remarks():
                log.info(remark)
        tokenizer = Tokenizer.load_for(inputs["tokenizer"].path, self.architecture.vocab_size)
        tokens = inputs["tokens"].path
        text = check_tokens(tokens, tokenizer, inputs["tokenizer"].path)
        if "init" in inputs:
            check_model(inputs["init"], tokenizer)
        start = self._start(inputs)
        with (
            may_stop(out, self.stop_after_minutes) as stopping,
            session(
                self.parallel,
                self.seed,
                self.kernels.collective_timeout,
                **self.megatron.random_states(),
            ),
        ):
            metrics = train_on_text(self, tokens, tokenizer, start=start, out=out, stopping=stopping)
        return metrics if text is None else metrics | {"text": text}

    def _start(self, inputs: Mapping[str, Artifact]) -> Path | None:
        """The folder with the weights to start from: the `init` artifact, or `init_from`; None for random weights."""
        if "init" in inputs and self.init_from:
            raise ConfigError(
                f"init_from={self.init_from}: the recipe already gives this stage an `init` input; remove init_from"
            )
        if "init" in inputs:
            return inputs["init"].path
        if self.init_from:
            return Path(self.init_from)
        if self.extension is not None:
            raise ConfigError(
                "extension: there is no model to extend; give the stage an `init` input, or init_from=DIR"
            )
        return None
