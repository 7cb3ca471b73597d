"""Makes the samples of a task at a length.

A sample depends only on (task, length, seed, index), the tokenizer and the sources, so tasks, lengths and samples can
be added without changing the others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prism.data.ruler.drafts import Builder, Draft
from megatron_prism.data.ruler.fitting import HaystackEnds, TokenCounter, TooShort, fit
from megatron_prism.data.ruler.needles import NeedleBuilder
from megatron_prism.data.ruler.questions import DocumentBuilder
from megatron_prism.data.ruler.samples import Sample
from megatron_prism.data.ruler.sources import Sources, load_sources
from megatron_prism.data.ruler.tasks import (
    CommonWordsTask,
    FrequentWordsTask,
    NeedleTask,
    QuestionTask,
    Task,
    TrackingTask,
)
from megatron_prism.data.ruler.tracking import TrackingBuilder
from megatron_prism.data.ruler.word_lists import CommonWordsBuilder, FrequentWordsBuilder
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError

# Room for a start token, even if the tokenizer adds none: a server may add one.
START_TOKENS = 1
# The search stops within 1/200 of the length, although only 1/100 is promised.
SLACK = 200
PROMISE = 100
REDRAWS = 16
# Ten times the longest context at which any model is tested; such a haystack takes about half a gigabyte.
MAX_LENGTH = 100_000_000
# One sample in this many is encoded as a whole to check its token count.
CHECK_EVERY = 50


def make_samples(
    task: Task,
    tokenizer: Tokenizer,
    length: int,
    samples: int,
    *,
    seed: int = 1,
    sources: Sources | None = None,
    keys: Sequence[str] | None = None,
    first: int = 0,
    check_every: int = CHECK_EVERY,
    counter: TokenCounter | None = None,
) -> list[Sample]:
    """Samples `first` .. `first + samples - 1` of any task, registered or not.

    Prompt, answer (`task.max_new_tokens`) and a start token together have at most `length` tokens, and at least 99% of
    it unless one haystack unit is longer than 1%; then one more unit would not fit. A unit is a noise sentence of the
    task, a needle (redrawn until within 1%), three numbered words, or a word.

    Args:
        sources: the text; None: text from this machine.
        keys: for needle tasks, the words from which keys are drawn; split the words to hold some out.
        check_every: one sample in this many is encoded as a whole. If the count by words is wrong, all samples are
            encoded.
        counter: a counter of this tokenizer, whose word counts are reused.

    Raises:
        ConfigError: if the length is too short for the task's fixed text.
        DataError: if the haystack is too short for the length, or there are too few questions.
    """
    _check(length, samples)
    sources = sources or load_sources([task])
    builder = _builder(task, sources, length=length, seed=seed, keys=keys)
    if isinstance(builder, DocumentBuilder) and builder.questions < first + samples:
        raise DataError(
            f"{builder.source}: {builder.questions} questions for task '{task.name}', but samples={first + samples}; "
            "use fewer samples or a larger file"
        )
    for counts in (counter or TokenCounter(tokenizer), TokenCounter(tokenizer, exact=True)):
        made: list[Sample] = []
        for index in range(first, first + samples):
            made.append(_sample(task, builder, counts, length=length, seed=seed, index=index))
            checked = not counts.exact and (index - first) % check_every == 0
            if checked and not counts.agrees(made[-1].prompt):
                break
        else:
            return made
    raise AssertionError("an exact counter cannot disagree with itself")


@dataclass(frozen=True)
class Plan:
    """The contents of a folder of samples."""

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    samples: int = 100
    seed: int = 1
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for length in self.lengths:
            _check(length, self.samples)
            if self.lengths.count(length) > 1:
                raise ConfigError(f"lengths: {length} occurs twice; remove one")
        if not self.lengths:
            raise ConfigError("lengths: empty; name at least one, for example 8192")


def check_plan(plan: Plan, tokenizer: Tokenizer, sources: Sources) -> None:
    """Raise, before any work, the errors that `make_samples` would raise for the shortest and the longest length."""
    counter = TokenCounter(tokenizer)
    last = plan.samples - 1
    for task in plan.tasks:
        for length in sorted({min(plan.lengths), max(plan.lengths)}):
            make_samples(
                task,
                tokenizer,
                length,
                samples=1,
                seed=plan.seed,
                sources=sources,
                keys=plan.keys,
                first=last,
                counter=counter,
            )


def _sample(
    task: Task, builder: Builder, counter: TokenCounter, *, length: int, seed: int, index: int
) -> Sample:
    # `count` includes the start tokens that the tokenizer adds.
    reserved = max(0, START_TOKENS - len(counter.tokenizer.policy.begin))
    budget = length - task.max_new_tokens - reserved
    best: tuple[Draft, int] | None = None
    for attempt in range(REDRAWS if builder.redraws else 1):

        def draft(units: int, attempt: int = attempt) -> Draft:
            rng = random.Random(f"{seed}/{task.name}/{length}/{index}/{attempt}")
            return builder.draft(index, rng, units)

        try:
            found = fit(
                draft,
                lambda made: counter.count(made.prompt),
                budget=budget,
                slack=length // SLACK,
                min_units=builder.min_units,
                max_units=builder.max_units,
            )
        except TooShort as problem:
            raise ConfigError(
                f"length {length}: too short for task '{task.name}', whose fixed text and answer take "
                f"{problem.tokens + length - budget} tokens with this tokenizer; use a longer length"
            ) from None
        except HaystackEnds as problem:
            raise DataError(
                f"{builder.source}: the haystack of task '{task.name}' ends at {problem.tokens} tokens, but the "
                f"length is {length}; use more text, a shorter length, or (essays only) set repeat_haystack"
            ) from None
        if best is None or found[1] > best[1]:
            best = found
        if budget - best[1] <= length // PROMISE:
            break
    assert best is not None
    made, tokens = best
    return Sample(
        task=task.name,
        length=length,
        index=index,
        seed=seed,
        tokens=tokens,
        max_new_tokens=task.max_new_tokens,
        prompt=made.prompt,
        answers=made.answers,
        metric=task.metric,
        depths=made.depths,
        source=builder.source,
    )


def _builder(task: Task, sources: Sources, *, length: int, seed: int, keys: Sequence[str] | None) -> Builder:
    if isinstance(task, NeedleTask):
        return NeedleBuilder(
            task, sources, length=length, seed=seed, keys=keys if task.keys == "words" else None
        )
    if isinstance(task, TrackingTask):
        return TrackingBuilder(task)
    if isinstance(task, CommonWordsTask):
        return CommonWordsBuilder(task, sources.words, sources.words_source, length)
    if isinstance(task, FrequentWordsTask):
        return FrequentWordsBuilder(task, length)
    if isinstance(task, QuestionTask):
        questions = sources.single if task.questions == "single" else sources.multi
        assert questions is not None
        return DocumentBuilder(task, questions, seed)
    raise ConfigError(f"task '{task.name}': there is no builder for a {type(task).__name__}")


def _check(length: int, samples: int) -> None:
    if length < 1 or samples < 1:
        raise ConfigError(f"length={length}, samples={samples}: both must be 1 or more")
    if length > MAX_LENGTH:
        raise ConfigError(f"length={length}: at most {MAX_LENGTH} tokens, because a sample is made in memory")
