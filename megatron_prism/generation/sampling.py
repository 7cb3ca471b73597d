"""Drawing tokens from logits with random numbers that belong to the text, not to the batch it happens to be in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

# Tokens whose probabilities are summed first: a running sum over a whole vocabulary costs more than the softmax.
BLOCK = 64
NUMBERS_AT_ONCE = 128


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
    probabilities, order = torch.softmax(logits.double() / temperature, -1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    drawn = _invert(probabilities.masked_fill(before >= top_p, 0.0), uniform)
    return order.gather(-1, drawn[:, None])[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first place whose running sum exceeds the draw; one of weight zero never does so first."""
    running = weights.double().cumsum(-1)
    drawn = torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)
    # A draw that rounds up to the whole sum would fall behind the last place that has weight.
    last = (weights > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(drawn, last)[:, 0]


def _invert_in_blocks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """`_invert` by blocks of the vocabulary, then inside one block."""
    padded = torch.nn.functional.pad(probabilities, (0, -probabilities.shape[-1] % BLOCK))
    blocks = padded.unflatten(-1, (-1, BLOCK))
    sums = blocks.double().sum(-1)
    chosen = _invert(sums, uniform)
    rows = torch.arange(len(chosen), device=chosen.device)
    size = sums[rows, chosen]
    before = sums.cumsum(-1)[rows, chosen] - size
    within = ((uniform * sums.sum(-1) - before) / size).clamp(0, 1)
    return chosen * BLOCK + _invert(blocks[rows, chosen], within)
