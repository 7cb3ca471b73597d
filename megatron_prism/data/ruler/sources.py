"""The text of samples: a haystack of essays, a list of English words, and two sets of questions.

They come from the user's files. Without these, text from this machine is used, and every sample's `source` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_prism.data.readers import read_texts
from megatron_prism.data.ruler.questions import (
    QuestionSet,
    installed_prose,
    package_questions,
    read_hotpot,
    read_squad,
)
from megatron_prism.data.ruler.tasks import CommonWordsTask, NeedleTask, QuestionTask, Task
from megatron_prism.data.ruler.word_lists import ADJECTIVES, NOUNS
from megatron_prism.errors import DataError

STAND_IN = "stand-in"
SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")
ENGLISH_WORD = re.compile(r"[a-z]{3,16}")
PUNCTUATION = ".,;:!?()[]{}\"'`*_"
# Longer "words" are addresses and tables; a single one could take a percent of a short context.
MAX_WORD_CHARACTERS = 40


@dataclass(frozen=True)
class Essays:
    """A haystack as words.

    Attributes:
        words: in reading order; none is empty or contains a space.
        ends: sorted indices of the words that end a sentence.
        source: the origin, as samples state it.
    """

    words: Sequence[str]
    ends: Sequence[int]
    source: str


@dataclass(frozen=True)
class Sources:
    """The text that a set of tasks needs; the rest is None or empty.

    Attributes:
        essays: haystack of needle tasks in essays.
        words, words_source: distinct English words for lists, sorted, and their origin.
        single, multi: questions about one document, and about two.
        repeat_haystack: repeat the essays if they are too short.
    """

    essays: Essays | None = None
    words: Sequence[str] = field(default=())
    words_source: str = ""
    single: QuestionSet | None = None
    multi: QuestionSet | None = None
    repeat_haystack: bool = False


def load_sources(
    tasks: Iterable[Task],
    *,
    essays: Path | None = None,
    squad: Path | None = None,
    hotpot: Path | None = None,
    words: Path | None = None,
    repeat_haystack: bool = False,
) -> Sources:
    """Read the text that these tasks need.

    Args:
        essays: text files (see `readers.read_texts`); None: package descriptions and docstrings from this machine.
        squad, hotpot: JSON files as SQuAD and HotpotQA publish them; None: questions about this machine's packages.
        words: a text file of English words; None: the words of the essays.

    Raises:
        DataError: if a file is missing, damaged or in the wrong form.
    """
    wanted = list(tasks)
    needs_essays = any(isinstance(task, NeedleTask) and task.haystack == "essay" for task in wanted)
    needs_words = any(isinstance(task, CommonWordsTask) for task in wanted)
    kinds = {task.questions for task in wanted if isinstance(task, QuestionTask)}
    haystack = None
    if needs_essays or (needs_words and words is None):
        haystack = read_essays(essays)
    listed: Sequence[str] = ()
    listed_source = ""
    if needs_words:
        listed = english_words(_text_words(words) if words else haystack.words if haystack else ())
        listed_source = words.name if words else f"words of {haystack.source}" if haystack else ""
        if not listed:
            raise DataError(f"{words or essays}: contains no English word; use a list of lower-case words")
    single = multi = None
    if "single" in kinds:
        single = read_squad(squad) if squad else package_questions("single")
    if "multi" in kinds:
        multi = read_hotpot(hotpot) if hotpot else package_questions("multi")
    return Sources(haystack, listed, listed_source, single, multi, repeat_haystack)


def read_essays(path: Path | None) -> Essays:
    """The texts as one sequence of words."""
    if path is not None:
        words = _text_words(path)
        source = Path(path).name
    else:
        words = _words_of(installed_prose())
        source = f"{STAND_IN}: package descriptions and docstrings of this machine"
    if not words:
        raise DataError(f"{path}: contains no words; use files with text")
    ends = [index for index, word in enumerate(words) if SENTENCE_END.search(word)]
    return Essays(words, ends, source)


def english_words(words: Iterable[str]) -> list[str]:
    """The distinct lower-case English words among `words` and the built-in words, sorted."""
    bare = {word.strip(PUNCTUATION).lower() for word in words}
    found = {word for word in bare if ENGLISH_WORD.fullmatch(word)}
    return sorted(found.union(ADJECTIVES, NOUNS)) if found else []


def _text_words(path: Path) -> list[str]:
    return _words_of(read_texts(Path(path)))


def _words_of(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.split() if len(word) <= MAX_WORD_CHARACTERS]
