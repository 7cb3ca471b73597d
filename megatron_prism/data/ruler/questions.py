"""Questions about documents: SQuAD and HotpotQA files as published, or questions about this machine's packages."""

from __future__ import annotations

import importlib.metadata
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from megatron_prism.data.installed_text import prose_documents
from megatron_prism.data.ruler.drafts import Draft, random_order
from megatron_prism.data.ruler.tasks import QuestionTask
from megatron_prism.errors import DataError
from megatron_prism.pipeline.json_text import read_json

# A document has at most this many characters of a description or of another text from this machine. Words longer than
# MAX_WORD_CHARACTERS are left out, because they are addresses or horizontal rules.
DOCUMENT_CHARACTERS = 3000
MAX_WORD_CHARACTERS = 40
ORDINALS = ("first", "second", "third")
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: the question.
        answers: each of them is correct.
        gold: indices of the documents that contain the answer.
        related: indices of related documents, which are the first distractors.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """Documents (lines without leading, trailing or double spaces), questions about them, and their origin."""

    documents: Sequence[str]
    questions: Sequence[Question]
    source: str


def read_squad(path: Path) -> QuestionSet:
    """The answerable questions of SQuAD 1.1 or 2.0. Related documents are the other paragraphs of the article.

    Raises:
        DataError: if the file does not have the form of SQuAD.
    """
    with _format_of(path, "SQuAD: data[].paragraphs[].{context, qas[].{question, answers[].text}}"):
        articles = [
            [(_clean(part["context"]), part["qas"]) for part in article["paragraphs"]]
            for article in read_json(path)["data"]
        ]
        documents = sorted({context for article in articles for context, _ in article})
        number = {document: index for index, document in enumerate(documents)}
        questions = []
        for article in articles:
            inside = list(dict.fromkeys(number[context] for context, _ in article))
            for context, entries in article:
                gold = number[context]
                for each in entries:
                    answers = tuple(dict.fromkeys(_text(answer["text"]) for answer in each["answers"]))
                    if answers and not each.get("is_impossible", False):
                        related = tuple(other for other in inside if other != gold)
                        questions.append(Question(_text(each["question"]), answers, (gold,), related))
    return _checked(path, documents, questions)


def read_hotpot(path: Path) -> QuestionSet:
    """The questions of HotpotQA (distractor setting). All paragraphs of a question are its gold documents.

    Raises:
        DataError: if the file does not have the form of HotpotQA.
    """
    with _format_of(path, "HotpotQA: a list of {question, answer, context: [[title, [sentences]]]}"):
        records = [
            (
                each["question"],
                each["answer"],
                [_clean(f"{title}\n{''.join(lines)}") for title, lines in each["context"]],
            )
            for each in read_json(path)
        ]
        documents = sorted({document for _, _, context in records for document in context})
        number = {document: index for index, document in enumerate(documents)}
        questions = [
            Question(
                _text(question),
                (_text(answer),),
                tuple(dict.fromkeys(number[document] for document in context)),
            )
            for question, answer, context in records
        ]
    return _checked(path, documents, questions)


def package_questions(kind: Literal["single", "multi"]) -> QuestionSet:
    """Questions about the installed packages, for a machine without SQuAD and HotpotQA.

    "single" asks for the summary or version of a package, "multi" for those of a package that another one requires, so
    the first document only leads to the second.

    Raises:
        DataError: if no package is installed with its metadata.
    """
    packages = _packages()
    names = sorted(packages)
    number = {name: index for index, name in enumerate(names)}
    questions: list[Question] = []
    for name in names:
        package = packages[name]
        subjects: list[tuple[str, tuple[int, ...], _Package]]
        if kind == "single":
            subjects = [(f"package {package.name}", (number[name],), package)]
        else:
            subjects = [
                (
                    f"{ordinal} package that {package.name} requires",
                    (number[name], number[required]),
                    packages[required],
                )
                for ordinal, required in zip(ORDINALS, package.requires, strict=False)
                if required in packages
            ]
        for subject, gold, target in subjects:
            questions.append(Question(f"What is the summary of the {subject}?", (target.summary,), gold))
            questions.append(Question(f"What is the version of the {subject}?", (target.version,), gold))
    if not questions:
        raise DataError(
            "no package with metadata is installed, so there are no questions; pass --squad and --hotpot files"
        )
    documents = [packages[name].document() for name in names]
    # Other prose from this machine serves as distractors.
    known = {packages[name].description[:MAX_WORD_CHARACTERS] for name in names}
    documents += [_short(text) for text in installed_prose() if text[:MAX_WORD_CHARACTERS] not in known]
    label = {"single": "one package each", "multi": "two packages each"}[kind]
    return QuestionSet(documents, questions, f"stand-in: questions about {label}, of those on this machine")


@cache
def installed_prose() -> tuple[str, ...]:
    """The English prose of this machine, read once."""
    return tuple(prose_documents())


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    summary: str
    requires: tuple[str, ...]
    description: str

    def document(self) -> str:
        required = f"{self.name} requires: {', '.join(self.requires)}." if self.requires else ""
        return _clean(
            f"{self.name}\nSummary: {self.summary}\nVersion: {self.version}\n{required}\n{_short(self.description)}"
        )


def _packages() -> dict[str, _Package]:
    """The installed packages by normalised name, without those that have no summary or version."""
    found: dict[str, _Package] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        if not metadata or any(key not in metadata for key in ("Name", "Version", "Summary")):
            continue
        name, version, summary = (_text(metadata[key]) for key in ("Name", "Version", "Summary"))
        if not name or not version or len(summary.split()) < 2:
            continue
        body = getattr(metadata, "get_payload", lambda: "")()
        # Requirements of an extra are not requirements of the package itself.
        lines = [line for line in distribution.requires or [] if "extra ==" not in line]
        matches = [REQUIREMENT.match(line) for line in lines]
        requires = tuple(dict.fromkeys(_normal(match[0]) for match in matches if match))
        description = body.strip() if isinstance(body, str) else ""
        found.setdefault(_normal(name), _Package(name, version, summary, requires, description))
    return found


def _short(text: str) -> str:
    lines = text[:DOCUMENT_CHARACTERS].splitlines()
    return _clean(
        "\n".join(" ".join(w for w in line.split() if len(w) <= MAX_WORD_CHARACTERS) for line in lines)
    )


def _normal(name: str) -> str:
    """A package's name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _clean(text: str) -> str:
    """Lines without leading, trailing or double spaces, empty lines, and halves of surrogate pairs."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "\n".join(line for line in (" ".join(line.split()) for line in whole.splitlines()) if line)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is needed, found {type(value).__name__}")
    return " ".join(_clean(value).split())


def _checked(path: Path, documents: list[str], questions: list[Question]) -> QuestionSet:
    if not questions:
        raise DataError(f"{path}: contains no question with an answer; use the published file")
    return QuestionSet(documents, questions, Path(path).name)


@contextmanager
def _format_of(path: Path, form: str) -> Iterator[None]:
    """Turn errors while reading a file into a DataError that names the file, its form and the reason."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        reason = f"no key {problem}" if isinstance(problem, KeyError) else str(problem)
        raise DataError(f"{path}: not in the form of {form} ({reason})") from None


class DocumentBuilder:
    """Drafts of a question task. A unit is a word of the distractor documents, of which the last is cut.

    Sample `index` asks the same question at every length.
    """

    redraws = False
    min_units = 0

    def __init__(self, task: QuestionTask, questions: QuestionSet, seed: int) -> None:
        self.task = task
        self.source = questions.source
        self._set = questions
        self._sizes = [document.count(" ") + 1 for document in questions.documents]
        order = list(range(len(questions.questions)))
        random.Random(f"{seed}/{task.name}/questions").shuffle(order)
        self._order = order
        largest = max(
            sum(self._sizes[document_index] for document_index in question.gold)
            for question in questions.questions
        )
        self.max_units: int | None = sum(self._sizes) - largest

    @property
    def questions(self) -> int:
        """Maximum number of samples."""
        return len(self._order)

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        documents = self._set.documents
        question = self._set.questions[self._order[index]]
        chosen = [(documents[document_index], True) for document_index in question.gold]
        used = set(question.gold)
        near = (
            question.related[document_index] for document_index in random_order(len(question.related), rng)
        )
        for document_index in chain(near, random_order(len(documents), rng)):
            if units <= 0:
                break
            if document_index not in used:
                used.add(document_index)
                text = documents[document_index]
                if self._sizes[document_index] > units:
                    text = " ".join(text.split(" ")[:units])
                chosen.append((text, False))
                units -= self._sizes[document_index]
        rng.shuffle(chosen)
        context = "\n\n".join(f"Document {number}:\n{text}" for number, (text, _) in enumerate(chosen, 1))
        return Draft(
            self.task.prompt.format(context=context, query=question.text),
            list(question.answers),
            [round(position / len(chosen), 4) for position, (_, gold) in enumerate(chosen) if gold],
        )
