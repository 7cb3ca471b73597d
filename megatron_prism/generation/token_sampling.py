"""Samples tokens from logits, with random numbers that depend on the sequence and not on its batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

# Probabilities are summed in blocks of this many tokens: a running sum over a whole vocabulary costs more than the
# softmax.
BLOCK = 64
NUMBERS_AT_ONCE = 128
# The nucleus is searched among this many most probable tokens first: sorting a whole vocabulary costs more than a
# small model.
LARGEST = 64


def uniform_numbers(seed: int, index: int) -> Iterator[float]:
    """An endless sequence of numbers in [0, 1), determined by both arguments (Philox, Salmon et al. 2011)."""
    generator = numpy.random.Generator(numpy.random.Philox(key=numpy.array([seed, index], numpy.uint64)))
    while True:
        yield from generator.random(NUMBERS_AT_ONCE).tolist()


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row, by inverting the cumulative distribution at `uniform`, and its log-probability.

    Args:
        logits: `[batch, vocabulary]`, fp32.
        uniform: `[batch]` in [0, 1), float64.
        temperature: 0 takes the largest logit.
        top_p: sample only from the smallest set of most probable tokens with at least this total probability
            (nucleus sampling, arXiv 1904.09751).

    Returns:
        tokens `[batch]`, and their log-probabilities before temperature and nucleus, `[batch]` in fp32.
    """
    logprobs = torch.log_softmax(logits, -1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    elif top_p < 1:
        tokens = _nucleus(logits, uniform, temperature, top_p)
    else:
        tempered = logprobs if temperature == 1 else torch.log_softmax(logits / temperature, -1)
        tokens = _invert_in_blocks(tempered.exp(), uniform)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _nucleus(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    probabilities = torch.softmax(logits.double() / temperature, -1)
    tokens, mass = _sample_from_largest(probabilities, uniform, top_p, min(LARGEST, logits.shape[-1]))
    if len(wide := (mass < top_p).nonzero()[:, 0]):
        tokens[wide], _ = _sample_from_largest(probabilities[wide], uniform[wide], top_p, logits.shape[-1])
    return tokens


def _sample_from_largest(
    probabilities: Tensor, uniform: Tensor, top_p: float, count: int
) -> tuple[Tensor, Tensor]:
    """A token of the nucleus, if the `count` most probable tokens contain it, and the total probability of these."""
    largest, order = probabilities.topk(count)
    running = largest.cumsum(-1)
    drawn = _invert(largest.masked_fill(running - largest >= top_p, 0.0), uniform)
    return order.gather(-1, drawn[:, None])[:, 0], running[:, -1]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose running sum exceeds `uniform` times the total; it never has weight zero."""
    running = weights.double().cumsum(-1)
    drawn = torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)
    # If the product rounds up to the total, the search would end behind the last index that has weight.
    last = (weights > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(drawn, last)[:, 0]


def _invert_in_blocks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Like `_invert`: chooses a block of the vocabulary first, then a token in it."""
    if missing := -probabilities.shape[-1] % BLOCK:
        probabilities = torch.nn.functional.pad(probabilities, (0, missing))
    blocks = probabilities.unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64)
    chosen = _invert(sums, uniform)
    rows = torch.arange(len(chosen), device=chosen.device)
    size = sums[rows, chosen]
    before = sums.cumsum(-1)[rows, chosen] - size
    within = ((uniform * sums.sum(-1) - before) / size).clamp(0, 1)
    return chosen * BLOCK + _invert(blocks[rows, chosen], within)
