"""The `corpus` stage of the shoebox: seven sources, each with a train and a valid split, and three held-out suites.

The same config on the same Python installation gives the same files, byte for byte.
"""

from __future__ import annotations

import platform
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data import installed_text
from megatron_prism.data.corpus import source_writer, split_of, split_texts
from megatron_prism.data.readers import SPLITS, corpus_sources, read_texts
from megatron_prism.data.shoebox import (
    chat,
    problems_code,
    problems_math,
    problems_science,
    retrieval,
)
from megatron_prism.data.shoebox.problem import (
    HELD_OUT,
    TRAIN,
    Family,
    GeneratedProblem,
    check_ids,
    check_texts,
    different_problems,
    problems,
)
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import LARGEST_COUNT, one_of, positive, seeds
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.stage import Stage

DEFAULT_CHARACTERS = {
    "web": 4_500_000,
    "code": 6_000_000,
    "math": 6_000_000,
    "science": 2_500_000,
    "code_reasoning": 2_500_000,
    "chat": 1_500_000,
    "retrieval": 6_000_000,
}
# Suite -> the source with its training problems, and its families of problems.
SUITES: dict[str, tuple[str, Mapping[str, Family]]] = {
    "math": ("math", problems_math.FAMILIES),
    "science": ("science", problems_science.FAMILIES),
    "code": ("code_reasoning", problems_code.FAMILIES),
}
# For prose, source files and dialogues. Problems are split by their parameters.
VALID_DOCUMENTS_PERCENT = 5.0


@dataclass
class ShoeboxCorpus(Stage):
    """No inputs. Output: `train/` and `valid/SOURCE.jsonl.zst`, `problems/` and `prompts/SUITE.jsonl`.

    Attributes:
        characters: approximate number of characters of training text of each source; web and code are limited to the
            text that is installed on this machine.
        valid_percent: size of the validation text, in percent of `characters`.
        held_out_problems: per suite.
        prompts: problems per suite for reinforcement learning, each with a solution. They come from the training split,
            so a model may have been trained on some of their solutions, but never on those of held-out problems.
    """

    kind: ClassVar[str] = "corpus"

    seed: int = 1
    characters: dict[str, int] = field(default_factory=lambda: dict(DEFAULT_CHARACTERS))
    valid_percent: float = 3.0
    held_out_problems: int = 256
    prompts: int = 256

    def __post_init__(self) -> None:
        positive(self, "held_out_problems", "prompts")
        seeds(self, "seed")
        if not 0 < self.valid_percent <= 100:
            raise ConfigError(f"valid_percent={self.valid_percent}: must be above 0 and at most 100")
        for source, size in self.characters.items():
            one_of(source, DEFAULT_CHARACTERS, "a source of characters")
            if not 0 < size <= LARGEST_COUNT:
                raise ConfigError(
                    f"characters.{source}={size}: must be greater than zero, and at most {LARGEST_COUNT}"
                )
        if missing := sorted(set(DEFAULT_CHARACTERS) - set(self.characters)):
            raise ConfigError(f"characters: there is no size for {', '.join(missing)}")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        written: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
        problem_ids: dict[str, dict[str, set[str]]] = {
            suite: {split: set() for split in SPLITS} for suite in SUITES
        }
        for source, texts in self._sources(problem_ids).items():
            for split, documents in texts().items():
                share = 1.0 if split == TRAIN else self.valid_percent / 100
                written[split][source] = _write(
                    out, split, source, documents, characters=self.characters[source] * share
                )
        held_out = {suite: self.held_out(suite) for suite in SUITES}
        prompts = {
            suite: different_problems(families, TRAIN, self.prompts, self._rng(suite, "prompts"), suite=suite)
            for suite, (_, families) in SUITES.items()
        }
        for suite, chosen in held_out.items():
            check_ids({HELD_OUT: {problem.id for problem in chosen}, **problem_ids[suite]})
            _write_problems(out / "problems" / f"{suite}.jsonl", [problem.record() for problem in chosen])
            records = [problem.record() | {"solution": problem.solution} for problem in prompts[suite]]
            _write_problems(out / "prompts" / f"{suite}.jsonl", records)
        everything = [problem for chosen in held_out.values() for problem in chosen]
        check_texts(
            everything,
            (t for s in SPLITS for path in corpus_sources(out, s).values() for t in read_texts(path)),
        )
        return {
            "sources": written,
            "held_out": {
                suite: {
                    "problems": len(chosen),
                    "different_training_problems": len(problem_ids[suite][TRAIN]),
                    "levels": dict(sorted(Counter(problem.level for problem in chosen).items())),
                }
                for suite, chosen in held_out.items()
            },
            "prompts": {suite: len(chosen) for suite, chosen in prompts.items()},
            "python": platform.python_version(),
        }

    def held_out(self, suite: str) -> list[GeneratedProblem]:
        """The held-out problems of a suite, which do not depend on the rest of the corpus."""
        return different_problems(
            *(SUITES[suite][1], HELD_OUT, self.held_out_problems, self._rng(suite, "held_out")), suite=suite
        )

    def _sources(
        self, problem_ids: dict[str, dict[str, set[str]]]
    ) -> dict[str, Callable[[], dict[str, Iterator[str]]]]:
        """Source -> function that returns its documents by split; ids of generated problems go into `problem_ids`."""
        # Cached, because parsing the standard library takes seconds.
        prose = cache(lambda: list(installed_text.prose_documents()))
        sources: dict[str, Callable[[], dict[str, Iterator[str]]]] = {
            "web": lambda: self._found("web", prose()),
            "code": lambda: self._found("code", installed_text.code_documents()),
            **{
                source: partial(self._solved, suite, problem_ids[suite])
                for suite, (source, _) in SUITES.items()
            },
            "chat": lambda: {split: self._dialogues(split) for split in SPLITS},
            "retrieval": lambda: self._retrieval(prose()),
        }
        return sources

    def _found(self, source: str, documents: Iterable[str]) -> dict[str, Iterator[str]]:
        texts = split_texts(documents, VALID_DOCUMENTS_PERCENT)
        for split, found in texts.items():
            self._rng(source, split).shuffle(found)
        return {split: iter(found) for split, found in texts.items()}

    def _solved(self, suite: str, problem_ids: dict[str, set[str]]) -> dict[str, Iterator[str]]:
        def documents(split: str) -> Iterator[str]:
            for problem in problems(SUITES[suite][1], split, self._rng(suite, split)):
                problem_ids[split].add(problem.id)
                yield problem.document

        return {split: documents(split) for split in SPLITS}

    def _dialogues(self, split: str) -> Iterator[str]:
        rng = self._rng("chat", split)
        while True:
            text = chat.dialogue(rng)
            if split_of(text, VALID_DOCUMENTS_PERCENT) == split:
                yield text

    def _retrieval(self, written: Iterable[str]) -> dict[str, Iterator[str]]:
        texts = split_texts(written, VALID_DOCUMENTS_PERCENT)
        return {
            split: retrieval.documents(self._rng("retrieval", split), installed_text.sentences(texts[split]))
            for split in SPLITS
        }

    def _rng(self, *parts: str) -> random.Random:
        return random.Random("|".join((str(self.seed), *parts)))


def _write(
    corpus: Path, split: str, source: str, texts: Iterator[str], *, characters: float
) -> dict[str, int]:
    """Write documents until they have `characters`; the document that reaches this number is the last."""
    with source_writer(corpus, split, source) as writer:
        for text in texts:
            writer.write(text)
            if writer.characters >= characters:
                break
    if not writer.documents:
        raise DataError(
            f"{corpus}: this machine has no {split} text for source '{source}'; use a Python with its library on disk"
        )
    return writer.counts()


def _write_problems(path: Path, records: list[dict[str, Any]]) -> None:
    with record_writer(path, "utf-8") as write:
        for record in records:
            write(record)
