"""The loss of text: summed over tokens, not averaged over micro-batches, as a whole and for each source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_prism.platform.hardware import device
from megatron_prism.training.intra_document import PACKED
from megatron_prism.training.micro_batches import SOURCE


def forward_step(sources: int, batches: Iterator[dict[str, Any]], model: Any) -> tuple[torch.Tensor, Any]:
    batch = next(batches)
    output = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        packed_seq_params=batch.get(PACKED),
    )
    return output, partial(token_loss, batch["loss_mask"], batch[SOURCE], sources)


def token_loss(
    mask: torch.Tensor, source: torch.Tensor, sources: int, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Summed loss and token count. Megatron divides the gradients by the count of all ranks and micro-batches.

    The report has both, and then the sums and the counts of each source.
    """
    masked = losses.float() * mask
    total, tokens = masked.sum(), mask.sum()
    # `source` is that of each row; rows may have been joined to one.
    rows = torch.stack([masked.detach(), mask]).view(2, len(source), -1).sum(2)
    by_source = rows.new_zeros(2, sources).index_add_(
        1, source if sources > 1 else torch.zeros_like(source), rows
    )
    report = torch.cat([torch.stack([total.detach(), tokens]), by_source.flatten()])
    return total, tokens.int(), {"loss": report}


@dataclass(frozen=True)
class LossSums:
    """The losses of a global batch: their sum, the number of tokens, and both for each source."""

    total: float
    tokens: float
    by_source: list[tuple[float, float]]

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else math.nan


def sum_over_ranks(reports: Sequence[torch.Tensor], size: int) -> list[float]:
    """Sum vectors of `size` numbers over micro-batches, data- and context-parallel ranks and pipeline stages.

    Only the last pipeline stage passes reports. All ranks get the same sums, computed in fp64.
    """
    from megatron.core import parallel_state

    summed = (
        torch.stack(list(reports)).double().sum(0)
        if reports
        else torch.zeros(size, dtype=torch.float64, device=device())
    )
    dist.all_reduce(summed, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.all_reduce(summed, group=parallel_state.get_pipeline_model_parallel_group())
    values: list[float] = summed.tolist()
    return values
