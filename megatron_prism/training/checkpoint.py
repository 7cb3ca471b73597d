"""Training checkpoints: weights, optimizer, random state and data position. A checkpoint is either complete or absent.

A checkpoint is a `torch_dist` folder that can be loaded with another tensor-, pipeline- or data-parallel layout, with
the record of `saved_state.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_prism.models.checkpoint_io import (
    DP_RESHARDABLE,
    FULLY_RESHARDABLE,
    checkpoint_metadata,
    install_weights,
    model_state,
    read_checkpoint,
    unwrap,
)
from megatron_prism.platform.process_groups import cuda_requests_on_cpu
from megatron_prism.platform.randomness import random_state, restore_random_state
from megatron_prism.training import adam_state, parameter_gather
from megatron_prism.training.optimizer_buckets import (
    bucket_hash,
    bucket_pieces,
    possible_format,
    write_index,
)
from megatron_prism.training.saved_state import Record, SavedState, read_state, write_record


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


@dataclass
class Contents:
    """What a checkpoint holds.

    Attributes:
        optimizer: None to leave its state out.
        optimizer_format: see `CheckpointSettings`; the other one is used where this one is impossible.
        further_models: other models of the run, such as a reference policy; the key is the name of their folder.
        final_of, architecture: see `Record`.
    """

    models: list[Any]
    optimizer: Any
    state: TrainingState
    optimizer_format: str = FULLY_RESHARDABLE
    further_models: Mapping[str, list[Any]] | None = None
    final_of: int = 0
    architecture: dict[str, Any] | None = None


def save_checkpoint(
    folder: Path,
    models: list[Any],
    optimizer: Any,
    state: TrainingState,
    *,
    further_models: Mapping[str, list[Any]] | None = None,
) -> None:
    """Write a checkpoint to `folder`, which appears only when it is complete."""
    from megatron_prism.training.checkpoint_saver import CheckpointSaver

    save_contents(
        CheckpointSaver(), folder, Contents(models, optimizer, state, further_models=further_models)
    )


def save_contents(
    saver: Any,
    folder: Path,
    contents: Contents,
    *,
    done: Callable[[], None] = lambda: None,
    make_room: Callable[[], None] = lambda: None,
) -> None:
    """Save `contents` with a `CheckpointSaver`; `done` and `make_room` are those of its method `save`."""
    import torch
    import torch.distributed as dist

    parameter_gather.finish(contents.models)
    kind, pieces = "", None
    fp8_history = uses_fp8(contents.models)
    with cuda_requests_on_cpu():
        sharded = model_state(contents.models, fp8_history=fp8_history)
        if contents.optimizer is not None:
            pieces = bucket_pieces(contents.optimizer, sharded)
            kind = possible_format(contents.optimizer, contents.optimizer_format, pieces)
    record = Record(
        progress=asdict(contents.state),
        layout=current_layout(),
        optimizer=kind,
        buckets=bucket_hash(contents.optimizer) if kind == DP_RESHARDABLE else "",
        fp8_history=fp8_history,
        final_of=contents.final_of,
        architecture=contents.architecture or {},
    )

    def main_part() -> dict[str, Any]:
        if kind:
            adam_state.prepare_state(contents.optimizer)
            sharded["optimizer"] = contents.optimizer.sharded_state_dict(
                sharded, metadata=checkpoint_metadata(kind)
            )
        return sharded

    def prepare(partial: Path) -> None:
        torch.save(random_state(), partial / random_file())
        if kind == DP_RESHARDABLE and pieces is not None:
            write_index(contents.optimizer, pieces, partial)

    parts: dict[str, Callable[[], dict[str, Any]]] = {"": main_part}
    for name, chunks in (contents.further_models or {}).items():
        parts[name] = lambda chunks=chunks: model_state(chunks)  # type: ignore[misc]
    saver.save(
        folder,
        parts,
        label=f"step {contents.state.step} | {'model' if contents.final_of else 'checkpoint'}",
        prepare=prepare,
        complete=lambda partial: write_record(partial, record),
        done=done,
        make_room=make_room,
    )
    dist.barrier()


def load_checkpoint(folder: Path, models: list[Any], optimizer: Any) -> TrainingState:
    """Restore everything from a whole checkpoint; see `restore`."""
    return restore(read_state(folder), models, optimizer)


def restore(saved: SavedState, models: list[Any], optimizer: Any) -> TrainingState:
    """Restore everything that the checkpoint holds.

    The random state is restored only with the layout that it was saved with.

    Raises:
        CheckpointError: if a file cannot be read, or the checkpoint does not fit the model.
    """
    import torch

    from megatron_prism.training.optimizer_reshard import read_resharded

    folder, record = saved.folder, saved.record
    with cuda_requests_on_cpu():
        sharded = model_state(models, fp8_history=record.fp8_history and uses_fp8(models))
        if record.optimizer:
            adam_state.prepare_state(optimizer)
        as_saved = record.optimizer != DP_RESHARDABLE or record.buckets == bucket_hash(optimizer)
        if record.optimizer and as_saved:
            sharded["optimizer"] = optimizer.sharded_state_dict(
                sharded, is_loading=True, metadata=checkpoint_metadata(record.optimizer)
            )
        loaded = read_checkpoint(sharded, folder)
        install_weights(models, loaded)
        if not record.optimizer:
            optimizer.reload_model_params()
        elif as_saved:
            adam_state.load_state(optimizer, loaded["optimizer"])
        else:
            adam_state.load_state(optimizer, read_resharded(optimizer, model_state(models), folder))
    random = folder / random_file()
    if random.exists() and record.layout in ({}, current_layout()):
        restore_random_state(torch.load(random, weights_only=True))
    known = {each.name for each in fields(TrainingState)}
    return TrainingState(**{key: value for key, value in record.progress.items() if key in known})


def random_file() -> str:
    """The name of the file with this rank's random state."""
    import torch.distributed as dist

    return f"random_{dist.get_rank()}_of_{dist.get_world_size()}.pt"


def current_layout() -> dict[str, int]:
    """The parallel sizes of this run, by the names of `ParallelConfig`."""
    from megatron.core import parallel_state

    return {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": (
            parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1
        ),
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
        "data_parallel_size": parallel_state.get_data_parallel_world_size(),
    }


def uses_fp8(models: list[Any]) -> bool:
    """Whether the layers compute in FP8, so that they have scales to keep."""
    return bool(getattr(unwrap(models[0]).config, "fp8", None))
