"""The engine that a stage samples with, as a part of the stage's config."""

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
from megatron_prism.models.model_folder import HF_FILES, find_model, is_megatron
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import one_of, to_mapping

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer
    from megatron_prism.platform.process_groups import ParallelConfig

# The arguments of each engine that the stage sets itself; a config must not set them.
STAGE_OPTIONS = {
    "megatron": ("model_folder", "tokenizer_folder", "batch_size", "text", "parallel"),
    "hf": ("folder", "tokenizer_folder", "batch_size", "text"),
    "vllm": ("folder", "tokenizer_folder", "text"),
    "openai": ("tokenizer", "store"),
}
# Options for reaching an engine and for its speed. They do not change the completions.
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


def tokenizer_folder(inputs: Mapping[str, Artifact]) -> Path:
    """The folder of a stage's tokenizer: its input, or what came with its model.

    Raises:
        ConfigError: if the stage has neither.
    """
    if "tokenizer" in inputs:
        return inputs["tokenizer"].path
    if "model" in inputs:
        return inputs["model"].path / HF_FILES
    raise ConfigError("this stage needs a 'tokenizer' input if there is no 'model' input; add one")


@dataclass
class EngineConfig:
    """The name of an engine, and its options.

    Attributes:
        name: 'megatron', 'hf', 'vllm' or 'openai'.
        options: the engine's options, except those that the stage sets itself; docs/engines.md lists them.
        text: how prompts begin, and whether names of special tokens in them are read as these tokens.
    """

    name: str = "megatron"
    options: dict[str, Any] = field(default_factory=dict)
    text: TextSettings = field(default_factory=TextSettings)

    def __post_init__(self) -> None:
        one_of(self.name, STAGE_OPTIONS, "engine.name")
        if self.name == "megatron" and not self.options:
            # Every command creates the default config, which must not import torch.
            return
        from megatron_prism.generation.open_engine import check_options

        reserved = STAGE_OPTIONS[self.name]
        for option in self.options:
            if option in reserved:
                raise ConfigError(
                    f"engine.options.{option}: the stage sets this option of engine '{self.name}' itself; remove it"
                )
        check_options(self.name, [*self.options, *reserved])

    def identity(self) -> dict[str, Any]:
        """The part of the config that decides the completions: everything except the options in TUNING."""
        config = to_mapping(self)
        return config | {"options": {k: v for k, v in config["options"].items() if k not in TUNING}}

    def tokenizer(self, folder: Path) -> Tokenizer:
        """The tokenizer that encodes prompts."""
        from megatron_prism.data.tokenizer import Tokenizer

        return Tokenizer.load(folder, self.text)

    def describe(self, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
        """How prompts are encoded, for the receipt. Warns if the model was trained on texts encoded differently."""
        from megatron_prism.data.text_record import check_model

        tokenizer = self.tokenizer(inputs["tokenizer"].path)
        if "model" in inputs:
            check_model(inputs["model"], tokenizer)
        return tokenizer.record()

    @contextmanager
    def open(
        self,
        *,
        model: Path | None,
        tokenizer: Path,
        batch_size: int,
        work: Path,
        parallel: ParallelConfig | None = None,
    ) -> Iterator[Engine]:
        """The engine on a frozen model. Its files in `work` are removed at the end, unless an error ended the stage.

        Args:
            model: a Megatron or Hugging Face folder, or one with a Hugging Face folder `model/` in it; all engines
                except 'openai' need it.
            tokenizer: the folder of the tokenizer that encodes prompts.
            batch_size: maximum number of sequences that engine 'megatron' or 'hf' decodes together.
            work: a folder that a stage keeps after an interruption; it stores the finished completions of a server.
            parallel: the layout of engine 'megatron' over this stage's processes; None: one process.

        Raises:
            ConfigError: if there is no model to load, or the engine is not installed.
        """
        from megatron_prism.generation.open_engine import open_engine

        if self.name != "openai" and model is None:
            raise ConfigError(
                f"engine '{self.name}' needs a 'model' input, and this stage has none; add one, or use "
                "engine 'openai' for a server"
            )
        stage_options = self._stage_options(model, tokenizer, batch_size, work)
        if parallel is not None and parallel.world_size > 1:
            stage_options["parallel"] = parallel
        with open_engine(self.name, **stage_options, **self.options) as engine:
            yield engine
        for folder in (STORE, EXPORTED):
            shutil.rmtree(work / folder, ignore_errors=True)

    def _stage_options(
        self, model: Path | None, tokenizer: Path, batch_size: int, work: Path
    ) -> dict[str, Any]:
        """Values for the options in STAGE_OPTIONS; for 'hf' and 'vllm' this exports a Megatron folder."""
        if self.name == "openai":
            return {"tokenizer": self.tokenizer(tokenizer), "store": work / STORE}
        assert model is not None
        folder = find_model(model)
        common = {"tokenizer_folder": tokenizer, "text": self.text}
        if self.name == "megatron":
            return common | {"model_folder": folder, "batch_size": batch_size}
        if is_megatron(folder):
            folder = _exported(folder, tokenizer, work / EXPORTED)
        return common | {"folder": folder} | ({"batch_size": batch_size} if self.name == "hf" else {})


def _exported(model: Path, tokenizer: Path, folder: Path) -> Path:
    """A Megatron folder as a Hugging Face folder, made anew at `folder`."""
    from megatron_prism.conversion.export_hf import export_checkpoint
    from megatron_prism.conversion.weights import open_weights

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    export_checkpoint(open_weights(model), folder, tokenizer=tokenizer)
    return folder
