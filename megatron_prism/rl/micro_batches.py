"""From answers to micro-batches: packed rows of whole texts, or padded rows of one text each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from megatron_prism.data.best_fit import best_fit_decreasing
from megatron_prism.models.layers.row_documents import RowDocuments
from megatron_prism.platform.hardware import device


@dataclass(frozen=True)
class TrainingText:
    """A prompt with one of its answers, and the values that the objective needs.

    Attributes:
        prompt_ids, answer_ids: token ids.
        logprobs: the sampler's log-probabilities of the answer's tokens.
        advantage: advantage of the answer.
        weight: weight of each token of the answer in the loss.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    logprobs: list[float]
    advantage: float
    weight: float

    @property
    def length(self) -> int:
        """Number of positions that predict a token: all but the last."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1


@dataclass
class MicroBatch:
    """Rows of equal length; every tensor is `[rows, length]`, cut to this rank's part under context parallelism.

    Attributes:
        tokens, labels, position_ids: the model's inputs.
        mask: 1.0 at positions that predict a token of an answer, else 0.0.
        advantages, weights, sampler_logprobs: the values of that token.
        texts: number of the text that a position belongs to, from 0.
        documents: the texts of a packed row, which do not see each other.
        old_logprobs, reference_logprobs: under the policy before the step and under the reference, once computed.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor
    sampler_logprobs: Tensor
    texts: Tensor
    documents: RowDocuments | None = None
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None


def plan_rows(
    lengths: Sequence[int], *, capacity: int, packing: bool, micro_batch_size: int
) -> list[list[int]]:
    """The texts of each micro-batch, by index: one packed row, or `micro_batch_size` texts of similar length.

    Micro-batches are sorted by decreasing size, so that assigning them to ranks in turn balances the work.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if not packing:
        return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]
    buffers = best_fit_decreasing(numpy.array(lengths, numpy.int64), capacity)
    rows: list[list[int]] = [[] for _ in range(int(buffers.max()) + 1)]
    for index in order:
        rows[int(buffers[index])].append(index)
    return sorted(rows, key=lambda row: -sum(lengths[index] for index in row))


def build_micro_batch(
    texts: Sequence[TrainingText], chosen: Sequence[int], row_length: int, packing: bool
) -> MicroBatch:
    """The micro-batch of these texts; without texts, a row of padding.

    Args:
        chosen: indices into `texts`.
        row_length: tokens of a row, at least as many as the longest text has, or all texts together if packed.
    """
    from megatron.core.utils import get_batch_on_this_cp_rank

    rows = 1 if packing or not chosen else len(chosen)
    integers = {name: numpy.zeros((rows, row_length), numpy.int64) for name in ("tokens", "labels", "texts")}
    floats = {
        name: numpy.zeros((rows, row_length), numpy.float32)
        for name in ("mask", "advantages", "weights", "sampler_logprobs")
    }
    start = 0
    for position, number in enumerate(chosen):
        text = texts[number]
        row, start = (0, start) if packing else (position, 0)
        ids = text.prompt_ids + text.answer_ids
        whole = slice(start, start + text.length)
        # Position p predicts token p + 1: the prompt's last position predicts the answer's first token.
        answer = slice(start + len(text.prompt_ids) - 1, start + text.length)
        integers["tokens"][row, whole], integers["labels"][row, whole] = ids[:-1], ids[1:]
        integers["texts"][row, whole] = number
        floats["mask"][row, answer], floats["sampler_logprobs"][row, answer] = 1.0, text.logprobs
        floats["advantages"][row, answer], floats["weights"][row, answer] = text.advantage, text.weight
        start += text.length
    values = {name: torch.from_numpy(array).to(device()) for name, array in (integers | floats).items()}
    values["position_ids"] = torch.arange(row_length, device=device()).expand(rows, row_length)
    documents = None
    if packing and chosen:
        lengths = [texts[number].length for number in chosen]
        documents = RowDocuments([lengths], row_length, device()) if len(lengths) > 1 else None
    return MicroBatch(**get_batch_on_this_cp_rank(values), documents=documents)
