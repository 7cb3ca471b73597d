"""The tasks as data: the 13 of RULER with HELMET's wording, and compact needle tasks for very short contexts.

The wording decides the scores, so prompts and parameters are RULER's (github.com/NVIDIA/RULER, Apache-2.0; Hsieh et al.
2024, arXiv 2404.06654) in the form of HELMET (github.com/princeton-nlp/HELMET, `load_ruler` and configs/ruler.yaml: the
beginning of the answer on a separate line, no chat template, `max_new_tokens` per task). No code was copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_prism.errors import ConfigError, suggest

# The score of a prediction: the share of the answers it contains, or whether it contains any (normalised) answer.
Metric = Literal["recall", "any"]

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NOISE_SENTENCES = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)


@dataclass(frozen=True)
class Task:
    """The fields of all tasks.

    Attributes:
        name: used in samples, files and scores.
        prompt: template of the whole prompt, up to the first word of the answer.
        max_new_tokens: room for the answer; it counts as part of the length.
    """

    name: str
    prompt: str
    max_new_tokens: int

    @property
    def metric(self) -> Metric:
        return "recall"


@dataclass(frozen=True)
class NeedleTask(Task):
    """Needles in a haystack: key-value sentences that the model must find.

    Attributes:
        prompt: contains {context} and {query} (the queried keys).
        needle: contains {key} and {value}.
        haystack: the text around the needles: "noise" sentences, "essay" text, or other "needle"s.
        keys: "words" or "uuids".
        key_words: the words from which keys are drawn; empty: adjective-noun pairs.
        values: "numbers" of `digits` digits, or "uuids".
        value_words: key -> its possible values. If given, these are the only keys and values.
        num_keys, num_values: needles are num_keys x num_values.
        num_queries: number of queried keys.
        noise: the sentences of a noise haystack, used in turn.
        separator: text between noise sentences or needles; the words of an essay are joined by spaces.
    """

    needle: str
    haystack: Literal["noise", "essay", "needle"]
    keys: Literal["words", "uuids"] = "words"
    key_words: tuple[str, ...] = ()
    values: Literal["numbers", "uuids"] = "numbers"
    digits: int = 7
    value_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    noise: tuple[str, ...] = (NOISE,)
    separator: str = "\n"

    def __post_init__(self) -> None:
        if not 1 <= self.num_queries <= self.num_keys or self.num_values < 1:
            raise ConfigError(
                f"task '{self.name}': num_queries={self.num_queries} of num_keys={self.num_keys} with "
                f"num_values={self.num_values}; there must be at least one of each, and not more queries than keys"
            )
        for text, where, names in (
            (self.prompt, "prompt", ("{context}", "{query}")),
            (self.needle, "needle", ("{key}", "{value}")),
        ):
            for name in names:
                if name not in text:
                    raise ConfigError(f"task '{self.name}': {where}={text!r} has no {name}")


@dataclass(frozen=True)
class TrackingTask(Task):
    """Variable tracking: which variables have a value that was passed on `num_hops` times.

    Attributes:
        prompt: contains {context}, {query} (the value) and {count} (number of variables that have it).
        num_chains: number of chains of assignments; the question is about the first.
    """

    num_chains: int = 1
    num_hops: int = 4


@dataclass(frozen=True)
class CommonWordsTask(Task):
    """The most frequent words of a numbered list; the prompt contains {context}.

    Attributes:
        num_common: number of common words, which are the answers.
        common_repeats, uncommon_repeats: how often each common word and each other word occurs.
        short_repeats: these two for lengths below `short_length` tokens, as in RULER.
    """

    num_common: int = 10
    common_repeats: int = 30
    uncommon_repeats: int = 3
    short_repeats: tuple[int, int] = (6, 1)
    short_length: int = 4096


@dataclass(frozen=True)
class FrequentWordsTask(Task):
    """The three most frequent made-up words of a text with frequencies rank^-alpha; the prompt contains {context}.

    Attributes:
        word_length: number of letters of a made-up word.
        tokens_per_word: the vocabulary has one word per this many tokens of the length.
    """

    alpha: float = 2.0
    word_length: int = 6
    tokens_per_word: int = 50


@dataclass(frozen=True)
class QuestionTask(Task):
    """A question about one or two of many documents; the prompt contains {context} and {query}.

    Attributes:
        questions: "single" (SQuAD) or "multi" (HotpotQA).
    """

    questions: Literal["single", "multi"]

    @property
    def metric(self) -> Metric:
        return "any"


def _needles(kind: str) -> str:
    return f"One of the special magic {kind} for {{key}} is: {{value}}."


def _ask_one(kind: str) -> str:
    return (
        f"A special magic {kind} is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\n{{context}}\n"
        f"What is the special magic {kind} for {{query}} mentioned in the provided text?\n"
        f"The special magic {kind} for {{query}} mentioned in the provided text is"
    )


def _ask_all(kinds: str) -> str:
    return (
        f"Some special magic {kinds} are hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kinds} afterwards.\n{{context}}\n"
        f"What are all the special magic {kinds} for {{query}} mentioned in the provided text?\n"
        f"The special magic {kinds} for {{query}} mentioned in the provided text are"
    )


_NUMBER, _NUMBERS, _UUID = _ask_one("number"), _ask_all("numbers"), _ask_one("uuid")
_TRACKING = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above.\n"
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned "
    "the value {query}, they are:"
)
_COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?\n"
    "Answer: The top 10 words that appear most often in the list are:"
)
_FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words.\n{context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?\n"
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)
_ONLY = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_QUESTION = (
    f"{_ONLY}\n\nThe following are given documents.\n\n{{context}}\n\n{_ONLY}\n\nQuestion: {{query}}\nAnswer:"
)

_RULER: tuple[Task, ...] = (
    NeedleTask("niah_single_1", _NUMBER, 50, _needles("numbers"), "noise"),
    NeedleTask("niah_single_2", _NUMBER, 50, _needles("numbers"), "essay"),
    NeedleTask("niah_single_3", _UUID, 50, _needles("uuids"), "essay", values="uuids"),
    NeedleTask("niah_multikey_1", _NUMBER, 50, _needles("numbers"), "essay", num_keys=4),
    NeedleTask("niah_multikey_2", _NUMBER, 50, _needles("numbers"), "needle"),
    NeedleTask("niah_multikey_3", _UUID, 100, _needles("uuids"), "needle", keys="uuids", values="uuids"),
    NeedleTask("niah_multivalue", _NUMBERS, 50, _needles("numbers"), "essay", num_values=4),
    NeedleTask("niah_multiquery", _NUMBERS, 100, _needles("numbers"), "essay", num_keys=4, num_queries=4),
    TrackingTask("vt", _TRACKING, 50),
    CommonWordsTask("cwe", _COMMON, 100),
    FrequentWordsTask("fwe", _FREQUENT, 50),
    QuestionTask("qa_1", _QUESTION, 50, "single"),
    QuestionTask("qa_2", _QUESTION, 50, "multi"),
)

# Compact tasks for contexts of 128 to 1,024 tokens and tiny models: a needle is a key and one of its possible values.
# These three constants are the wording of the compact tasks, which the shoebox's training text also uses.
COMPACT_NEEDLE = "{key} {value}."
COMPACT_QUESTION = "\nRecall: {query}"
COMPACT_VALUES: Mapping[str, Sequence[str]] = {
    key: tuple(values.split())
    for key, values in {
        "animal": "badger beaver camel donkey eagle falcon monkey otter panda parrot rabbit salmon spider tiger "
        "turtle zebra",
        "colour": "amber black blue brown golden green grey orange pink purple red scarlet silver violet white yellow",
        "food": "beans bread butter cheese cookie curry garlic honey lemon melon onion pasta pepper rice salad soup",
        "tool": "anvil axe broom brush bucket chisel clamp drill hammer knife ladder needle rope saw shovel spade",
    }.items()
}


def compact_task(
    name: str,
    *,
    num_keys: int = 1,
    num_queries: int = 1,
    question: str = COMPACT_QUESTION,
    room: int = 8,
    haystack: Literal["noise", "essay"] = "noise",
) -> NeedleTask:
    """A needle task in RULER's five noise sentences, used in turn, or in prose."""
    return NeedleTask(
        name=name,
        prompt="{context}" + question,
        max_new_tokens=room,
        needle=COMPACT_NEEDLE,
        haystack=haystack,
        value_words=COMPACT_VALUES,
        num_keys=num_keys,
        num_queries=num_queries,
        noise=NOISE_SENTENCES,
        separator=" ",
    )


_COMPACT: tuple[Task, ...] = (
    compact_task("needle_single"),
    compact_task("needle_multikey", num_keys=4),
    compact_task("needle_prose", num_keys=4, haystack="essay"),
    compact_task("needle_multiquery", num_keys=4, num_queries=2, room=16),
)

RULER_TASKS: dict[str, Task] = {task.name: task for task in _RULER}
COMPACT_TASKS: dict[str, Task] = {task.name: task for task in _COMPACT}
TASKS: dict[str, Task] = RULER_TASKS | COMPACT_TASKS


def named_tasks(names: Iterable[str]) -> list[Task]:
    """Registered tasks by name.

    Raises:
        ConfigError: for an empty list, a duplicate name, or an unknown name.
    """
    wanted = list(names)
    for name in wanted:
        if name not in TASKS:
            raise ConfigError(f"tasks: unknown task '{name}'{suggest(name, TASKS)}")
        if wanted.count(name) > 1:
            raise ConfigError(f"tasks: '{name}' occurs twice; remove one")
    if not wanted:
        raise ConfigError(f"tasks: empty; name at least one of {', '.join(TASKS)}")
    return [TASKS[name] for name in wanted]
