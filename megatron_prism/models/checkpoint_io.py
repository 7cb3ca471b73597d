"""Saves and loads the weights of a model as Megatron `torch_dist` checkpoints, with any parallel layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_prism.errors import CheckpointError
from megatron_prism.models.model_folder import CHECKPOINT_METADATA
from megatron_prism.platform.process_groups import cuda_requests_on_cpu

# Formats of the distributed optimizer's state: each rank writes its own part of each buffer, or the parts are gathered
# and stored by parameter.
DP_RESHARDABLE, FULLY_RESHARDABLE = "dp_reshardable", "fully_reshardable"


def checkpoint_metadata(optimizer_format: str = FULLY_RESHARDABLE) -> dict[str, Any]:
    """The metadata for sharded_state_dict.

    Args:
        optimizer_format: how the distributed optimizer's state is stored, see `CheckpointSettings`.
    """
    from megatron.core import parallel_state

    return {
        "distrib_optim_sharding_type": optimizer_format,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def unwrap(model: Any) -> Any:
    """The model inside Megatron's DistributedDataParallel."""
    return model.module if hasattr(model, "ddp_config") else model


def model_state(models: list[Any], *, fp8_history: bool = False) -> dict[str, Any]:
    """Sharded weights of this rank's chunks.

    Args:
        fp8_history: with Transformer Engine's `_extra_state`: the scales and maxima of FP8, which are no weights, but
            which a resumed run needs in order to round as before.
    """
    state = {}
    for model, name in zip(models, _chunk_names(models), strict=True):
        sharded = unwrap(model).sharded_state_dict(metadata=checkpoint_metadata())
        state[name] = {
            key: value for key, value in sharded.items() if fp8_history or not key.endswith("_extra_state")
        }
    return state


def write_checkpoint(state: dict[str, Any], folder: Path) -> None:
    """Write a state to the existing, empty `folder`; all ranks call this together."""
    import torch.distributed as dist

    from megatron_prism.models.parallel_save import plan_save

    pending = plan_save(state, folder)
    pending.write()
    dist.barrier()
    pending.finish()


def read_checkpoint(state: dict[str, Any], folder: Path, *, shared: bool = False) -> dict[str, Any]:
    """Read what `state` names. All kinds of errors become a CheckpointError.

    Args:
        shared: each rank reads what it names, and ranks may name overlapping parts of a tensor; otherwise the ranks
            name all of each tensor together, and data-parallel ranks share the reading.
    """
    from megatron.core import dist_checkpointing
    from torch.distributed.checkpoint import CheckpointException

    from megatron_prism.models.parallel_save import parallel_load

    if not (folder / CHECKPOINT_METADATA).exists():
        raise CheckpointError(
            f"{folder}: not a checkpoint (no {CHECKPOINT_METADATA}); the save may have been interrupted"
        )
    try:
        with cuda_requests_on_cpu():
            if shared:
                whole: dict[str, Any] = dist_checkpointing.load(
                    state, str(folder), validate_access_integrity=False
                )
                return whole
            return parallel_load(state, folder)
    # torch's CheckpointException is no Exception.
    except (Exception, CheckpointException) as problem:
        raise CheckpointError(
            f"{folder}: cannot be loaded into this model ({first_line(problem)})"
        ) from problem


def first_line(problem: BaseException) -> str:
    """The reason in one line; of torch's CheckpointException the error of the first rank that failed."""
    failures = getattr(problem, "failures", None)
    if failures is not None:
        return first_line(next(iter(failures.values()))[0]) if failures else "another rank has the reason"
    text = str(problem).strip()
    return text.splitlines()[0][:300] if text else type(problem).__name__


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
