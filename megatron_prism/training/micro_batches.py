"""A data-parallel rank's micro-batches of a step: read from a dataset, then placed on the device.

Reading needs no device and no collective, so a thread can do it for the next steps (prefetch.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from megatron_prism.data.document_bounds import DOCUMENTS
from megatron_prism.platform.hardware import device, has_gpu
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.intra_document import place_documents

INPUTS = ("tokens", "labels", "loss_mask", "position_ids")
# The number of each sample's source in the mixture; Megatron's BlendedDataset calls it so.
SOURCE = "dataset_id"


@runtime_checkable
class ReadsBatches(Protocol):
    """Data that reads this rank's batches itself, for example ahead of time."""

    def batch(self, consumed_samples: int) -> list[dict[str, Tensor]]:
        """The micro-batches of the step that follows `consumed_samples`, as `RankShare.read` returns them."""


@dataclass(frozen=True)
class RankShare:
    """Which samples of a step this data-parallel rank works on."""

    batch: BatchConfig
    parallel: ParallelConfig
    data_rank: int

    def read(self, dataset: Any, first_sample: int, size: int) -> list[dict[str, Tensor]]:
        """The micro-batches of the `size` samples from `first_sample` on, on the CPU."""
        rows = self.batch.micro_batch_size
        starts = (
            first_sample + (index * self.parallel.data_parallel_size + self.data_rank) * rows
            for index in range(self.batch.micro_batches(self.parallel, size))
        )
        return [stack([dataset[index] for index in range(start, start + rows)]) for start in starts]


def stack(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Samples as `[rows, sequence_length]` tensors, and the source of each row, `[rows]`."""
    keys = [*INPUTS, *([DOCUMENTS] if DOCUMENTS in samples[0] else [])]
    stacked = {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in keys}
    stacked[SOURCE] = torch.tensor([int(sample.get(SOURCE, 0)) for sample in samples])
    if has_gpu():
        # Copies from pinned memory do not wait for the device.
        stacked = {key: value if key == DOCUMENTS else value.pin_memory() for key, value in stacked.items()}
    return stacked


def place(stacked: dict[str, Tensor], backend: str) -> dict[str, Any]:
    """This rank's model inputs on its device, cut by context parallelism."""
    from megatron.core.utils import get_batch_on_this_cp_rank

    inputs = {key: stacked[key].to(device(), non_blocking=True) for key in INPUTS}
    placed = place_documents(get_batch_on_this_cp_rank(inputs), stacked.get(DOCUMENTS), backend)
    return placed | {SOURCE: stacked[SOURCE].to(device(), non_blocking=True)}
