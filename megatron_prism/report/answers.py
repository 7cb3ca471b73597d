"""What became of the answers of every evaluation, and some of them to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prism.evaluation.answers import SHOWN, answered_suites, read_answers
from megatron_prism.evaluation.generations import FOLDER
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.tables import Table, evaluations, model_labels

# How many answers are shown for each suite of an evaluation, and how many characters of each.
SHOWN_CORRECT, SHOWN_WRONG = 2, 2
LONGEST_TEXT = 4000
# Outcomes as scores.json has them -> headings.
OUTCOMES = {
    "graded": "graded",
    "ungradable": "ungradable",
    "timed_out": "timed out",
    "refused": "refused",
    "truncated": "truncated",
    "empty": "empty",
}


@dataclass(frozen=True)
class Answered:
    """The answers of one suite of one evaluation; `anchor` is their place on the page."""

    label: str
    evaluation: str
    suite: str
    answers: list[dict[str, Any]]

    @property
    def anchor(self) -> str:
        return f"answers-{self.evaluation}-{self.suite}"


def outcome_table(artifacts: Mapping[str, Artifact]) -> Table:
    """A row for every suite of every evaluation: how many answers, and what became of them."""
    labels = model_labels(artifacts)
    rows = []
    for name, artifact in evaluations(artifacts).items():
        for suite, values in artifact.metrics.get("suites", {}).items():
            if "outcomes" in values:
                counts = [f"{values['outcomes'].get(key, 0):,}" for key in OUTCOMES]
                dropped = f"{values.get('dropped_problems', 0):,}"
                rows.append([labels[name], suite, f"{values['samples']:,}", *counts, dropped])
    columns = ["model", "suite", "answers", *OUTCOMES.values(), "problems left out"]
    return Table(columns, rows, [False, False, *[True] * (len(columns) - 2)])


def outcome_sum(artifacts: Mapping[str, Artifact]) -> str:
    """The outcomes of all answers together that occur, as '3,600 graded, 20 timed out, 64 truncated'."""
    total: Counter[str] = Counter()
    for artifact in evaluations(artifacts).values():
        for values in artifact.metrics.get("suites", {}).values():
            total.update(values.get("outcomes", {}))
    return ", ".join(f"{total[key]:,} {name}" for key, name in OUTCOMES.items() if total[key])


def answered(artifacts: Mapping[str, Artifact]) -> list[Answered]:
    """For each evaluation, for each suite, the first few correct and wrong answers."""
    labels = model_labels(artifacts)
    return [
        Answered(labels[name], name, suite, list(_some(artifact, suite)))
        for name, artifact in evaluations(artifacts).items()
        if (artifact.path / FOLDER).is_dir()
        for suite in _in_order(artifact)
    ]


def by_model(answers: Sequence[Answered]) -> dict[str, list[Answered]]:
    """Label of the model -> the answers of its suites, in order."""
    found: dict[str, list[Answered]] = {}
    for each in answers:
        found.setdefault(each.label, []).append(each)
    return found


def _in_order(artifact: Artifact) -> list[str]:
    """The suites with answers, in the order of their scores."""
    scored = list(artifact.metrics.get("suites", {}))
    return sorted(
        answered_suites(artifact.path), key=lambda suite: scored.index(suite) if suite in scored else 0
    )


def _some(artifact: Artifact, suite: str) -> Iterator[dict[str, Any]]:
    room = {True: SHOWN_CORRECT, False: SHOWN_WRONG}
    kept: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for answer in read_answers(artifact.path, suite, SHOWN):
        of_its_kind = kept[answer["correct"]]
        if len(of_its_kind) < room[answer["correct"]]:
            of_its_kind.append({**answer, **{key: _cut(answer[key]) for key in ("prompt", "completion")}})
        if all(len(kept[correct]) == room[correct] for correct in room):
            break
    yield from kept[True] + kept[False]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + f" … ({len(text):,} characters)"
