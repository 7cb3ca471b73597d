"""Drawing tokens from logits with random numbers that belong to the text, not to the batch it happens to be in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

# Tokens whose probabilities are summed first: a running sum over a whole vocabulary costs more than the softmax.
BLOCK = 64
NUMBERS_AT_ONCE = 128
# A nucleus is looked for among so many tokens first: sorting all of a vocabulary costs more than a small model.
LARGEST = 64


def uniform_numbers(seed: int, index: int) -> Iterator[float]:
    """An endless sequence in [0, 1), a function of both numbers (Philox, Salmon et al. 2011)."""
    generator = numpy.random.Generator(numpy.random.Philox(key=numpy.array([seed, index], numpy.uint64)))
    while True:
        yield from generator.random(NUMBERS_AT_ONCE).tolist()


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution at `uniform`, and its log-probability.

    Args:
        logits: `[batch, vocabulary]`, fp32.
        uniform: `[batch]` in [0, 1), float64.
        temperature: 0 takes the largest logit.
        top_p: only the smallest set of most probable tokens that reaches this mass is drawn from
            (nucleus sampling, arXiv 1904.09751).

    Returns:
        tokens `[batch]`, and their log-probabilities without temperature and nucleus, `[batch]` in fp32.
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
    drawn, mass = _draw_from_largest(probabilities, uniform, top_p, min(LARGEST, logits.shape[-1]))
    if len(wide := (mass < top_p).nonzero()[:, 0]):
        drawn[wide], _ = _draw_from_largest(probabilities[wide], uniform[wide], top_p, logits.shape[-1])
    return drawn


def _draw_from_largest(
    probabilities: Tensor, uniform: Tensor, top_p: float, count: int
) -> tuple[Tensor, Tensor]:
    """A token of the nucleus, if the `count` most probable tokens hold it, and the mass that these have."""
    largest, order = probabilities.topk(count)
    running = largest.cumsum(-1)
    drawn = _invert(largest.masked_fill(running - largest >= top_p, 0.0), uniform)
    return order.gather(-1, drawn[:, None])[:, 0], running[:, -1]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first place whose running sum exceeds the draw; one of weight zero never does so first."""
    running = weights.double().cumsum(-1)
    drawn = torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)
    # A draw that rounds up to the whole sum would fall behind the last place that has weight.
    last = (weights > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(drawn, last)[:, 0]


def _invert_in_blocks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """`_invert` by blocks of the vocabulary, then inside one block."""
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
