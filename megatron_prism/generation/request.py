"""A sample in progress, and how it ends, for the engines that sample token by token in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy

from megatron_prism.errors import DataError
from megatron_prism.generation.engine import (
    Completion,
    FinishReason,
    Refuse,
    SamplingParams,
    check_prompts,
    cut_at_stop,
)
from megatron_prism.generation.token_sampling import uniform_numbers

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer

# A byte-level token may hold part of a character: decode this many more tokens than a stop string needs.
STOP_MARGIN = 4


@dataclass
class Request:
    """One sample of one prompt, and its tokens so far; there are at most `max_tokens` of them.

    `numbers` are its random numbers in [0, 1), one per token. `started` is when the first work on it began.
    """

    prompt: int
    sample: int
    prompt_ids: list[int]
    max_tokens: int
    numbers: Iterator[float]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    started: float = 0.0


def new_requests(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    params: SamplingParams,
    *,
    wanted: list[list[int]],
    seeds: Sequence[int],
    limit: int,
    refuse: Refuse | None,
) -> Iterator[Request]:
    """The samples to make, prompt by prompt.

    Args:
        wanted: for each prompt, the numbers of its samples; those of a refused prompt are removed.
        limit: maximum number of tokens of prompt and completion.

    Raises:
        DataError: for a prompt that is empty, or so long that no token fits after it, if `refuse` is None.
    """
    encoded = tokenizer.encode_batch(list(prompts))
    check_prompts(prompts, encoded, limit, wanted=wanted, refuse=refuse)
    for index, token_ids in enumerate(encoded):
        max_tokens = min(params.max_new_tokens, limit - len(token_ids))
        for sample in wanted[index]:
            yield Request(index, sample, token_ids, max_tokens, uniform_numbers(seeds[index], sample))


def check_vocabulary(tokenizer: Tokenizer, folder: Path, vocab_size: int, model: Path) -> None:
    """Refuse a tokenizer with tokens for which the model has no row.

    Raises:
        DataError: naming both folders.
    """
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"{folder}: {tokenizer.vocab_size} tokens, but {model} has vocab_size={vocab_size}; use the tokenizer it "
            "was trained with"
        )


class Ending:
    """Decides when a sequence ends: with the end token, a stop string, or its last allowed token."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self.tokenizer, self.stop = tokenizer, params.stop
        self._may_end = _tokens_that_may_end(tokenizer, params)

    def add(self, request: Request, token: int, logprob: float) -> bool:
        """Append a sampled token; whether the request ends with it."""
        request.token_ids.append(token)
        request.logprobs.append(logprob)
        if self._may_end[token] and (token == self.tokenizer.eos_id or self._has_stop(request.token_ids)):
            request.finish_reason = "stop"
            return True
        return len(request.token_ids) == request.max_tokens

    def completion(self, request: Request) -> Completion:
        """The completion of a request that has just ended."""
        ended = request.token_ids[-1] == self.tokenizer.eos_id
        text = self.tokenizer.decode(request.token_ids[:-1] if ended else request.token_ids)
        return Completion(
            text=cut_at_stop(text, self.stop),
            token_ids=request.token_ids,
            logprobs=request.logprobs,
            finish_reason=request.finish_reason,
            seconds=perf_counter() - request.started,
        )

    def _has_stop(self, token_ids: list[int]) -> bool:
        if not self.stop:
            return False
        # Every token is at least one byte, so a stop string spans at most as many tokens as it has bytes.
        tail = max(len(stop.encode()) for stop in self.stop) + STOP_MARGIN
        text = self.tokenizer.decode(token_ids[-tail:])
        return any(stop in text for stop in self.stop)


def _tokens_that_may_end(tokenizer: Tokenizer, params: SamplingParams) -> list[bool]:
    """For each token, whether a sequence may end with it: the end token, and tokens in which a stop string can end.

    Decoding the tail of every sequence after every token would cost more than sampling the token.
    """
    flags = numpy.zeros(tokenizer.vocab_size, bool)
    flags[tokenizer.eos_id] = True
    last = {stop[-1] for stop in params.stop or [] if stop}
    if last:
        pieces = tokenizer.decode_each(range(tokenizer.vocab_size))
        # Part of a character decodes to the replacement character, which may complete any character.
        hints = last | {"\N{REPLACEMENT CHARACTER}"}
        # Some tokenizers drop a leading space when they decode.
        flags |= numpy.array([any(c in piece or c.isspace() for c in hints) for piece in pieces])
    found: list[bool] = flags.tolist()
    return found
