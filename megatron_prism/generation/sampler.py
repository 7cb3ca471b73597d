"""Which engine a stage samples with, as a part of its config."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import Engine
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import one_of, to_mapping

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer

# What a stage gives the engine itself, and nobody else may.
GIVEN = {
    "megatron": ("model_folder", "tokenizer_folder", "batch_size", "text"),
    "vllm": ("folder", "text"),
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
        text: how prompts begin, and what names of special tokens in them mean.
    """

    engine: str = "megatron"
    options: dict[str, Any] = field(default_factory=dict)
    text: TextSettings = field(default_factory=TextSettings)

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
        config = to_mapping(self)
        return config | {"options": {k: v for k, v in config["options"].items() if k not in TUNING}}

    def tokenizer(self, folder: Path) -> Tokenizer:
        """The tokenizer that encodes prompts."""
        from megatron_prism.data.tokenizer import Tokenizer

        return Tokenizer.load(folder, self.text)

    def describe(self, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
        """How prompts are made, for the receipt; compared with the texts that the model was trained on."""
        from megatron_prism.data.text_record import check_model

        tokenizer = self.tokenizer(inputs["tokenizer"].path)
        if "model" in inputs:
            check_model(inputs["model"], tokenizer)
        return tokenizer.record()

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

        folder = inputs["tokenizer"].path
        if self.engine != "openai" and "model" not in inputs:
            raise ConfigError(
                f"engine '{self.engine}' samples from a 'model' input, and this stage has none; give one, or use "
                "engine 'openai' for a server"
            )
        given = dict(zip(GIVEN[self.engine], self._given(inputs, folder, slots, work), strict=True))
        with open_engine(self.engine, **given, **self.options) as engine:
            yield engine
        for left in (STORE, EXPORTED):
            shutil.rmtree(work / left, ignore_errors=True)

    def _given(
        self, inputs: Mapping[str, Artifact], tokenizer: Path, slots: int, work: Path
    ) -> tuple[Any, ...]:
        if self.engine == "megatron":
            return inputs["model"].path, tokenizer, slots, self.text
        if self.engine == "openai":
            return self.tokenizer(tokenizer), work / STORE
        from megatron_prism.conversion.export_hf import export_checkpoint
        from megatron_prism.conversion.weights import open_weights

        folder = work / EXPORTED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        export_checkpoint(open_weights(inputs["model"].path), folder, tokenizer)
        return folder, self.text
