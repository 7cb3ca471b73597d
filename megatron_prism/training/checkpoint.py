"""Training checkpoints: weights, optimizer, random state and data position. A checkpoint is either complete or absent.

A checkpoint is a `torch_dist` folder that can be loaded with another tensor-, pipeline- or data-parallel layout. It is
written under a temporary name, which rank 0 changes to the final one when all ranks are done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.models.checkpoint_io import (
    checkpoint_metadata,
    install_weights,
    model_state,
    read_checkpoint,
    write_checkpoint,
)
from megatron_prism.platform.process_groups import cuda_requests_on_cpu
from megatron_prism.platform.randomness import random_state, restore_random_state
from megatron_prism.training import adam_state
from megatron_prism.training.prolonging import STATE


@dataclass
class TrainingState:
    """The progress of a run.

    Attributes:
        step: completed steps.
        consumed_samples: samples read, which is the position in the data.
        guard: see `Guard.state`.
    """

    step: int = 0
    consumed_samples: int = 0
    guard: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    models: list[Any],
    optimizer: Any,
    state: TrainingState,
    *,
    further_models: Mapping[str, list[Any]] | None = None,
) -> None:
    """Write a checkpoint to `folder`, which appears only when it is complete.

    Args:
        further_models: other models of the run, such as a reference policy; the key is the name of their folder.
    """
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    partial = folder.with_name(folder.name + ".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    with cuda_requests_on_cpu():
        adam_state.prepare_state(optimizer)
        sharded = model_state(models)
        sharded["optimizer"] = optimizer.sharded_state_dict(sharded, metadata=checkpoint_metadata())
        write_checkpoint(sharded, partial)
        for name, chunks in (further_models or {}).items():
            if rank == 0:
                (partial / name).mkdir()
            dist.barrier()
            write_checkpoint(model_state(chunks), partial / name)
    torch.save(random_state(), partial / f"random_{rank}_of_{dist.get_world_size()}.pt")
    dist.barrier()
    if rank == 0:
        (partial / STATE).write_text(json.dumps(asdict(state)))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    dist.barrier()


def load_checkpoint(folder: Path, models: list[Any], optimizer: Any) -> TrainingState:
    """Restore everything. The random state is restored only with the number of ranks that it was saved with."""
    import torch
    import torch.distributed as dist

    state = saved_state(folder)
    with cuda_requests_on_cpu():
        adam_state.prepare_state(optimizer)
        sharded = model_state(models)
        sharded["optimizer"] = optimizer.sharded_state_dict(
            sharded, is_loading=True, metadata=checkpoint_metadata()
        )
        loaded = read_checkpoint(sharded, folder)
        install_weights(models, loaded)
        adam_state.load_state(optimizer, loaded["optimizer"])
    random_file = folder / f"random_{dist.get_rank()}_of_{dist.get_world_size()}.pt"
    if random_file.exists():
        restore_random_state(torch.load(random_file, weights_only=True))
    return state


def saved_state(folder: Path) -> TrainingState:
    """The progress of the run that wrote a checkpoint."""
    return TrainingState(**json.loads((folder / STATE).read_text()))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`, or None."""
    complete = sorted(path for path in folder.glob("step_*") if (path / STATE).exists())
    return complete[-1] if complete else None
