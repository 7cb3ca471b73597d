"""How probable given continuations of given contexts are, from a model of transformers.

Texts are padded on the right: what a causal model computes for a token does not depend on the tokens after it, so no
architecture needs a mask. Each text is read whole; `likelihood.py` reads a shared context only once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from megatron_prism.generation.engine import Likelihood, Progress
from megatron_prism.generation.likelihood_plan import Pair, fitting_context

# transformers gives the logits of all tokens of a batch, so their number is limited, too.
LOGITS = 2**28


@torch.no_grad()
def log_likelihoods(
    model: Any, pairs: Sequence[Pair], context_length: int, *, batch_tokens: int, progress: Progress
) -> list[Likelihood]:
    """The likelihood of each pair's continuation, in order; `progress` gets the number of pairs that just finished.

    Args:
        batch_tokens: maximum number of tokens that are read together, padding included; a longer text is read alone.

    Raises:
        DataError: for an empty context or continuation, or a continuation longer than `context_length`.
    """
    rows = [
        ([*fitting_context(number, pair, context_length), *pair[1]], len(pair[1]))
        for number, pair in enumerate(pairs)
    ]
    limit = min(batch_tokens, LOGITS // model.get_input_embeddings().num_embeddings)
    found: dict[int, Likelihood] = {}
    for numbers in _batches([len(row) - 1 for row, _ in rows], limit):
        width = len(rows[numbers[0]][0]) - 1
        # The last token is only predicted. Any token serves as padding.
        read = [rows[number][0][:-1] for number in numbers]
        tokens = torch.tensor([row + row[-1:] * (width - len(row)) for row in read], device=model.device)
        logits = model(tokens, use_cache=False).logits
        for place, number in enumerate(numbers):
            row, count = rows[number]
            wanted = torch.tensor(row[-count:], device=logits.device)
            own = logits[place, len(row) - 1 - count : len(row) - 1].float()
            logprobs = torch.log_softmax(own, -1).gather(1, wanted[:, None])
            found[number] = Likelihood(float(logprobs.double().sum()), bool((own.argmax(-1) == wanted).all()))
        progress(len(numbers))
    return [found[number] for number in range(len(pairs))]


def _batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Numbers of texts of similar lengths, longest first, with at most `limit` tokens after padding."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while order:
        count = max(1, limit // lengths[order[0]])
        yield order[:count]
        del order[:count]
