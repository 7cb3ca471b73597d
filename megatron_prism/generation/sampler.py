"""Which engine a stage samples with, as a part of its config."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import Engine
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import one_of, plain

# What a stage gives the engine itself, and nobody else may.
GIVEN = {
    "megatron": ("train_artifact_folder", "tokenizer_folder", "batch_size"),
    "vllm": ("folder",),
    "openai": ("tokenizer", "store"),
}
# How an engine is reached and how fast it is; what it answers does not depend on these.
TUNING = {
    "base_url",
    "api_key_variable",
    "timeout",
    "retries",
    "first_wait",
    "concurrency",
    "gpu_memory_share",
}
STORE, EXPORTED = "completions", "exported"


@dataclass
class Sampler:
    """An engine by name, and its options.

    Attributes:
        engine: 'megatron', 'vllm' or 'openai'.
        options: of the engine, but for those that the stage knows itself; docs/engines.md has them.
    """

    engine: str = "megatron"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of(self.engine, GIVEN, "engine")
        if self.engine == "megatron" and not self.options:
            # The default must not make every command import torch.
            return
        from megatron_prism.generation.engines import check_options

        taken = [name for name in self.options if name in GIVEN[self.engine]]
        if taken:
            raise ConfigError(f"options.{taken[0]}: the stage gives engine '{self.engine}' this itself")
        check_options(self.engine, [*self.options, *GIVEN[self.engine]])

    def identity(self) -> dict[str, Any]:
        """What decides the answers: a server that moved, or is asked more patiently, is the same engine."""
        options = {key: value for key, value in plain(self)["options"].items() if key not in TUNING}
        return {"engine": self.engine, "options": options}

    @contextmanager
    def open(self, inputs: Mapping[str, Artifact], slots: int, work: Path) -> Iterator[Engine]:
        """The engine on a frozen model; what it leaves in `work` is gone at the end, unless something went wrong.

        Args:
            inputs: of the stage: `tokenizer`, and `model` for all engines but 'openai'.
            slots: most samples that engine 'megatron' has under way at once.
            work: a folder that an interrupted stage finds again: finished answers of a server are kept there.

        Raises:
            ConfigError: where there is no model to load, or the engine is not installed.
        """
        from megatron_prism.generation.engines import open_engine

        tokenizer = inputs["tokenizer"].path
        if self.engine != "openai" and "model" not in inputs:
            raise ConfigError(
                f"engine '{self.engine}' samples from a 'model' input, and this stage has none; give one, or use "
                "engine 'openai' for a server"
            )
        given = dict(zip(GIVEN[self.engine], self._given(inputs, tokenizer, slots, work), strict=True))
        with open_engine(self.engine, **given, **self.options) as engine:
            yield engine
        for left in (STORE, EXPORTED):
            shutil.rmtree(work / left, ignore_errors=True)

    def _given(
        self, inputs: Mapping[str, Artifact], tokenizer: Path, slots: int, work: Path
    ) -> tuple[Any, ...]:
        from megatron_prism.data.tokenizer import Tokenizer

        if self.engine == "megatron":
            return inputs["model"].path, tokenizer, slots
        if self.engine == "openai":
            return Tokenizer.load(tokenizer), work / STORE
        from megatron_prism.conversion.export_hf import export_checkpoint
        from megatron_prism.conversion.model_folder import open_weights

        folder = work / EXPORTED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        export_checkpoint(open_weights(inputs["model"].path), folder, tokenizer)
        return (folder,)
