"""The texts on which models are compared: from files, or from what every machine with Python has.

The paper's sets are 200 texts each of Wikipedia, C4 and GSM8K's prompts. Without files, three sets stand in for them,
without a download: `reference` (passages of the standard library's documentation), `web` (passages of the pages of
installed packages) and `math` (generated problems that no shoebox corpus trains on). The first two depend on the
Python installation, so results name each set by a hash.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from megatron_prism.data import installed_text
from megatron_prism.data.readers import read_texts
from megatron_prism.data.shoebox import problems_math
from megatron_prism.data.shoebox.problem import HELD_OUT, different_problems
from megatron_prism.errors import ConfigError, DataError

TEXT_KEY = "text"
# Characters of a passage of installed text: long enough that a mean over its tokens says something.
MIN_PASSAGE = 200
SEED = "cka"


@dataclass(frozen=True)
class InputSet:
    """Different texts under one name.

    Attributes:
        source: where they are from, for people.
    """

    name: str
    source: str
    texts: list[str]

    @property
    def sha256(self) -> str:
        """Of the texts and their order: results with equal hashes are about the same texts."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def file_sets(named: Iterable[str], count: int, folder: Path | None = None) -> list[InputSet]:
    """The first `count` different texts of each file.

    Args:
        named: `NAME=FILE` or `NAME=FILE#KEY`. A `.txt` file has one text in each line; JSON lines, Parquet and folders
            are read as corpora are, with the text under KEY (by default `text`).
        folder: what relative paths are relative to; None: the working directory.

    Raises:
        ConfigError: for another form, or a name that is used twice.
        DataError: for a file that cannot be read, or with too few texts.
    """
    found: dict[str, InputSet] = {}
    for each in named:
        name, _, place = each.partition("=")
        if not name or not place:
            raise ConfigError(f"--inputs {each}: write NAME=FILE, for example math=problems.jsonl#question")
        if name in found:
            raise ConfigError(f"--inputs {each}: the name '{name}' is used twice; give each set another one")
        found[name] = InputSet(name, place, _read(place, count, folder))
    return list(found.values())


def installed_sets(count: int) -> list[InputSet]:
    """`reference`, `web` and `math`, with `count` texts each.

    Raises:
        DataError: if this machine has fewer.
    """
    return [
        InputSet(name, source, _first(make(count), count, f"the built-in set '{name}'"))
        for name, (source, make) in INSTALLED.items()
    ]


def _read(place: str, count: int, folder: Path | None) -> list[str]:
    # A file name may have a '#' in it.
    base = folder or Path()
    path, key = (place, "") if (base / place).exists() else place.rpartition("#")[::2]
    path, key = (path, key) if path else (place, "")
    texts = read_texts(base / path, key or TEXT_KEY)
    if path.lower().endswith(".txt"):
        texts = (line.strip() for text in texts for line in text.split("\n") if not line.isspace())
    return _first((text for text in texts if text), count, path)


def _first(texts: Iterable[str], count: int, where: str) -> list[str]:
    read = 0
    different: dict[str, None] = {}
    for text in texts:
        read += 1
        different[text] = None
        if len(different) == count:
            return list(different)
    repeated = f" ({read - len(different)} repeated ones are not counted)" if read > len(different) else ""
    raise DataError(
        f"{where}: {len(different)} different texts{repeated}, but samples={count}; give more texts, or set samples "
        "lower"
    )


def _reference(count: int) -> Iterator[str]:
    # One passage of each file, then a second of each: the texts are about different things, and few files are parsed.
    files = installed_text.source_files()
    random.Random(SEED).shuffle(files)
    return _in_turn(_passages(installed_text.docstrings_of_file(file)) for file in files)


def _web(count: int) -> Iterator[str]:
    return _in_turn(_passages([text]) for text in installed_text.descriptions())


def _math(count: int) -> Iterator[str]:
    rng = random.Random(SEED)
    chosen = different_problems(problems_math.FAMILIES, HELD_OUT, count, rng, suite="math")
    return (problem.prompt for problem in chosen)


def _passages(texts: Iterable[str]) -> list[str]:
    """Consecutive paragraphs of a text, as many as are long enough together, with an English sentence in them."""
    found = []
    for text in texts:
        passage: list[str] = []
        for paragraph in text.split("\n\n"):
            passage.append(" ".join(paragraph.split()))
            if sum(map(len, passage)) >= MIN_PASSAGE:
                found.append("\n".join(filter(None, passage)))
                passage = []
    return [each for each in found if installed_text.SENTENCE.search(each)]


def _in_turn(documents: Iterable[list[str]]) -> Iterator[str]:
    """The first text of each document, then the second of each, and so on; a document is made when its turn comes."""
    kept = []
    for document in documents:
        kept.append(document)
        yield from islice(document, 1)
    for layer in zip_longest(*(document[1:] for document in kept)):
        yield from (text for text in layer if text is not None)


# Name -> source for people, and a function that makes texts, at least as many as its argument if it can.
INSTALLED: Mapping[str, tuple[str, Callable[[int], Iterator[str]]]] = {
    "reference": ("documentation of Python's standard library", _reference),
    "web": ("pages of the installed packages", _web),
    "math": ("generated problems", _math),
}
