"""Saves and loads the weights of a model as Megatron `torch_dist` checkpoints, with any parallel layout."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

from megatron_prism.errors import CheckpointError
from megatron_prism.models.model_folder import CHECKPOINT_METADATA
from megatron_prism.platform.process_groups import cuda_requests_on_cpu


def checkpoint_metadata() -> dict[str, Any]:
    """The metadata for sharded_state_dict; `fully_reshardable` optimizer state loads with any layout."""
    from megatron.core import parallel_state

    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def unwrap(model: Any) -> Any:
    """The model inside Megatron's DistributedDataParallel."""
    return model.module if hasattr(model, "ddp_config") else model


def model_state(models: list[Any]) -> dict[str, Any]:
    """Sharded weights of this rank's chunks, without Transformer Engine's `_extra_state`, which is not a weight."""
    state = {}
    for model, name in zip(models, _chunk_names(models), strict=True):
        sharded = unwrap(model).sharded_state_dict(metadata=checkpoint_metadata())
        state[name] = {key: value for key, value in sharded.items() if not key.endswith("_extra_state")}
    return state


def write_checkpoint(state: dict[str, Any], folder: Path) -> None:
    """dist_checkpointing.save without the extra process that upstream starts for its queue of results.

    Upstream's queue (filesystem_async.py:51) lives in a process that imports torch and the main program again,
    because a save may continue in the background. Saves are synchronous here, so a queue in this process is enough.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()
    dist_checkpointing.save(state, str(folder))


def read_checkpoint(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """dist_checkpointing.load; all its kinds of errors become a CheckpointError."""
    from megatron.core import dist_checkpointing

    if not (folder / CHECKPOINT_METADATA).exists():
        raise CheckpointError(
            f"{folder}: not a checkpoint (no {CHECKPOINT_METADATA}); the save may have been interrupted"
        )
    try:
        with cuda_requests_on_cpu():
            loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder))
    except Exception as problem:
        first = str(problem).strip().splitlines()[0][:300] if str(problem).strip() else type(problem).__name__
        raise CheckpointError(f"{folder}: cannot be loaded into this model ({first})") from problem
    return loaded


def load_weights(models: list[Any], folder: Path) -> None:
    """Load the weights of a training checkpoint into this rank's model chunks; optimizer state is not read."""
    install_weights(models, read_checkpoint(model_state(models), Path(folder)))


def install_weights(models: list[Any], loaded: dict[str, Any]) -> None:
    """Copy loaded weights, which were read for `model_state(models)`, into the chunks.

    Raises:
        CheckpointError: if a weight of the model is not among them.
    """
    for model, name in zip(models, _chunk_names(models), strict=True):
        # Not strict, because Transformer Engine's `_extra_state` is not in the state.
        result = unwrap(model).load_state_dict(loaded[name], strict=False)
        missing = [key for key in result.missing_keys if not key.endswith("_extra_state")]
        if missing:
            raise CheckpointError(f"the checkpoint has no values for {', '.join(missing[:3])}")


def _chunk_names(models: list[Any]) -> list[str]:
    return ["model"] if len(models) == 1 else [f"model{index}" for index in range(len(models))]
