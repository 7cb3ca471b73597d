"""The engine of a training run: it reads the trained model directly, or receives the weights after each step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.conversion.export_hf import export_running
from megatron_prism.conversion.gather import gather_hf
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.generation.engine import Engine
from megatron_prism.generation.engine_config import EXPORTED
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.generation.open_engine import open_engine
from megatron_prism.generation.vllm_engine import VLLMEngine
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.policy import Policy


@dataclass(frozen=True)
class RolloutEngine:
    """An engine, and the function that copies new weights to it; None if the engine reads the model directly."""

    engine: Engine
    push_weights: Callable[[], None] | None = None


@contextmanager
def open_rollout_engine(
    config: ReinforceConfig,
    policy: Policy,
    *,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    hf_files: Path | None,
    out: Path,
) -> Iterator[RolloutEngine]:
    """The sampler of a run, with the policy's weights.

    Args:
        hf_files: folder with the Hugging Face config and other files of the model, if it has one.
        out: folder of the run; for 'vllm' it holds the initial weights while the run lasts.
    """
    chunks = [unwrap(model) for model in policy.trainer.models]
    if config.engine.name == "megatron":
        yield RolloutEngine(MegatronEngine(chunks, tokenizer, config.slots, config.context_length))
        return
    folder = out / EXPORTED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    export_running(chunks, config.architecture, folder, tokenizer=tokenizer_folder, files=hf_files)
    options = {"max_length": config.context_length} | config.engine.options
    with open_engine(config.engine.name, folder=folder, text=config.engine.text, **options) as engine:
        assert isinstance(engine, VLLMEngine)

        def push_weights() -> None:
            gathered = gather_hf(chunks, config.architecture)
            assert gathered is not None, "rank 0 gathers all weights, and vLLM runs with one process"
            engine.update_weights(gathered[1])

        yield RolloutEngine(engine, push_weights)
    shutil.rmtree(folder)
