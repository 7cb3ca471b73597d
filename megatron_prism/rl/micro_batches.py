"""From answers to micro-batches: packed rows of whole texts, or padded rows of one text each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from megatron_prism.data.best_fit import best_fit_decreasing
from megatron_prism.models.layers.segments import Segments
from megatron_prism.platform.hardware import device


@dataclass(frozen=True)
class TrainingText:
    """A prompt with one of its answers, as the objective needs it.

    Attributes:
        prompt_ids, answer_ids: tokens.
        logprobs: of the answer's tokens, as the sampler reported them.
        advantage: of the answer.
        weight: of each of its tokens in the sum over tokens that is the loss.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    logprobs: list[float]
    advantage: float
    weight: float

    @property
    def length(self) -> int:
        """Positions that predict a token: all but the last."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1


@dataclass
class MicroBatch:
    """Rows of equal length; every tensor is `[rows, length]`, cut to this rank's part under context parallelism.

    Attributes:
        values: `tokens`, `labels`, `position_ids`, and per position that predicts an answer's token (`mask` 1.0):
            `advantages`, `weights`, `sampler` (log-probabilities), `texts` (numbers of the texts, from 0).
        segments: the texts of a packed row.
        old, reference: log-probabilities under the policy before the step and under the reference, once known.
    """

    values: dict[str, Tensor]
    segments: Segments | None = None
    old: Tensor | None = None
    reference: Tensor | None = None


def plan_rows(lengths: Sequence[int], capacity: int, packing: bool, micro_batch_size: int) -> list[list[int]]:
    """Which texts make up each micro-batch: one packed row, or `micro_batch_size` texts of like length.

    The order is by falling size, so dealing micro-batches out in turn gives ranks like amounts of work.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if not packing:
        return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]
    buffers = best_fit_decreasing(numpy.array(lengths, numpy.int64), capacity)
    rows: list[list[int]] = [[] for _ in range(int(buffers.max()) + 1)]
    for index in order:
        rows[int(buffers[index])].append(index)
    return sorted(rows, key=lambda row: -sum(lengths[index] for index in row))


def build(texts: Sequence[TrainingText], chosen: Sequence[int], row_length: int, packing: bool) -> MicroBatch:
    """The micro-batch of these texts; no texts give one that changes nothing.

    Args:
        row_length: tokens of a row; at least the texts' (packed: together).
    """
    from megatron.core.utils import get_batch_on_this_cp_rank

    rows = 1 if packing or not chosen else len(chosen)
    integers = {name: numpy.zeros((rows, row_length), numpy.int64) for name in ("tokens", "labels", "texts")}
    floats = {
        name: numpy.zeros((rows, row_length), numpy.float32)
        for name in ("mask", "advantages", "weights", "sampler")
    }
    start = 0
    for place, number in enumerate(chosen):
        text = texts[number]
        row, start = (0, start) if packing else (place, 0)
        ids = text.prompt_ids + text.answer_ids
        whole = slice(start, start + text.length)
        # Position p predicts token p + 1: the prompt's last position predicts the answer's first token.
        answer = slice(start + len(text.prompt_ids) - 1, start + text.length)
        integers["tokens"][row, whole], integers["labels"][row, whole] = ids[:-1], ids[1:]
        integers["texts"][row, whole] = number
        floats["mask"][row, answer], floats["sampler"][row, answer] = 1.0, text.logprobs
        floats["advantages"][row, answer], floats["weights"][row, answer] = text.advantage, text.weight
        start += text.length
    values = {name: torch.from_numpy(array).to(device()) for name, array in (integers | floats).items()}
    values["position_ids"] = torch.arange(row_length, device=device()).expand(rows, row_length)
    segments = None
    if packing and chosen:
        lengths = [texts[number].length for number in chosen]
        segments = Segments(lengths, row_length, device()) if len(lengths) > 1 else None
    return MicroBatch(get_batch_on_this_cp_rank(values), segments)
