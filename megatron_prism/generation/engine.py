"""The interface of every engine: prompts in, completions with log-probabilities out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.config import not_negative, positive, seeds

# Maximum number of prompt tokens that are read in one forward pass. A longer prompt is read alone.
READ_TOKENS = 4096

FinishReason = Literal["stop", "length"]


@dataclass
class SamplingParams:
    """How to sample. `temperature=0` is greedy. A `stop` string ends a completion and is not part of its text."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, "max_new_tokens")
        not_negative(self, "temperature")
        seeds(self, "seed")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: must be in (0, 1]")


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        text: decoded tokens, without the end token and without the stop string.
        token_ids: every sampled token, including the end token if it was sampled.
        logprobs: natural log-probability of each of `token_ids` under the untempered model distribution.
        finish_reason: 'stop' (end token or stop string) or 'length' (max_new_tokens or the context length was reached).
        seconds: wall time from the first work on the completion to its end, in which others were sampled, too.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    seconds: float = field(default=0.0, compare=False)


# Called with the number of completions that have just finished.
Progress = Callable[[int], None]
# Called with each finished completion: the index of its prompt, its number among the prompt's samples, and itself.
Keep = Callable[[int, int, Completion], None]


# Called with a sample that cannot be made: the index of its prompt, its number among the prompt's samples, and why.
Refuse = Callable[[int, int, str], None]


def no_progress(finished: int) -> None:
    """A `Progress` that does nothing."""


def keep_nothing(prompt: int, number: int, completion: Completion) -> None:
    """A `Keep` that does nothing."""


class Engine(Protocol):
    """Generates completions.

    `generate` returns `samples` completions for each prompt, in order.

    Args:
        numbers: for each prompt, the numbers of the samples to make; None: 0 to `samples` - 1. The random numbers of a
            sample follow from the prompt's seed and the sample's number, so a missing one can be made later.
        keep: called with each completion as soon as it is finished, from the thread that called `generate`.
        refuse: called with each sample whose prompt cannot be completed, because it is empty or too long, or because a
            server refuses it; the result then has no such sample. None: that is an error.
        seeds: a seed for each prompt; None: they follow from `params.seed` and the prompts.
        batch_size: maximum number of sequences decoded together; it can only lower the engine's own maximum.
            Engine 'megatron' needs it to bound its memory; vLLM and servers bound theirs themselves and ignore it.
    """

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams,
        *,
        samples: int = 1,
        progress: Progress = no_progress,
        seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
        numbers: Sequence[Sequence[int]] | None = None,
        keep: Keep = keep_nothing,
        refuse: Refuse | None = None,
    ) -> list[list[Completion]]: ...


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation after its context.

    Attributes:
        logprob: natural log-probability of the continuation, the sum over its tokens.
        greedy: whether each token is the most probable one, so that greedy decoding would have written it.
    """

    logprob: float
    greedy: bool


@runtime_checkable
class LikelihoodEngine(Engine, Protocol):
    """An engine that can also tell how probable given continuations are.

    Attributes:
        context_length: maximum number of tokens that the model reads.

    Args:
        pairs: token ids of a context (at least one) and of its continuation (at least one). Tokens of the context that
            do not fit before the continuation are left out from its start.
        batch_tokens: number of tokens that are read together.
    """

    context_length: int

    def log_likelihoods(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_tokens: int = READ_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Likelihood]: ...


def sample_numbers(
    prompts: Sequence[str], samples: int, numbers: Sequence[Sequence[int]] | None
) -> list[list[int]]:
    """The numbers of the samples to make of each prompt."""
    return [list(range(samples)) for _ in prompts] if numbers is None else [list(each) for each in numbers]


def check_prompts(
    prompts: Sequence[str],
    encoded: Sequence[Sequence[object]],
    limit: int,
    *,
    wanted: list[list[int]],
    refuse: Refuse | None = None,
) -> None:
    """Refuse a prompt (token ids in `encoded`) that is empty, or so long that no token fits below `limit`.

    Args:
        wanted: for each prompt, the numbers of its samples; those of a refused prompt are removed.

    Raises:
        DataError: naming the prompt, if `refuse` is None.
    """
    for index, (prompt, token_ids) in enumerate(zip(prompts, encoded, strict=True)):
        if token_ids and len(token_ids) < limit:
            continue
        problem = (
            f"prompt {prompt[:40]!r}... has {len(token_ids)} tokens; prompt and completion may have {limit} together "
            "(max_position_embeddings of the model, or context_length); shorten the prompt"
            if token_ids
            else "prompt '' has no tokens; a prompt needs at least one"
        )
        if refuse is None:
            raise DataError(problem)
        for number in wanted[index]:
            refuse(index, number, problem)
        wanted[index].clear()


def prompt_seeds(seed: int, prompts: Sequence[str]) -> list[int]:
    """A 63-bit seed for each prompt, which does not depend on the other prompts of the call.

    If a prompt occurs several times, each occurrence has its own seed.
    """
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed} {seen[prompt]} {prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "big") >> 1)
        seen[prompt] += 1
    return seeds


def sample_seed(prompt_seed: int, number: int) -> int:
    """The seed of completion `number` of a prompt, below 2**31 as servers require."""
    return (prompt_seed + number) % 2**31


def cut_at_stop(text: str, stop: Sequence[str] | None) -> str:
    """`text` up to the first of the `stop` strings."""
    return text[: min((text.find(mark) for mark in stop or () if mark in text), default=len(text))]
