"""`prism eval show`: read what a model answered, in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_prism.cli.number_checks import whole_number
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError

# What a person may ask for, and which answers that keeps.
KINDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "wrong": lambda answer: not answer["correct"],
    "right": lambda answer: bool(answer["correct"]),
    "truncated": lambda answer: answer["finish_reason"] == "length",
    "failed": lambda answer: answer["reason"] not in ("correct", "wrong", "no_answer"),
    "disputed": lambda answer: answer["published"] is not None and answer["published"] != answer["correct"],
}
# What of an answer is shown, besides the texts.
FACTS = ("kind", "answer", "extracted", "reason", "published", "finish_reason", "tokens", "seconds")


def _option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="SUITE N", help=f"N answers of SUITE that {what}.")


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="runs/shoebox:extend, a run folder of `prism eval`, or one evaluation, as "
            "runs/shoebox/evaluate_base.",
        ),
    ],
    wrong: Annotated[tuple[str, int] | None, _option("wrong", "do not count as right")] = None,
    right: Annotated[tuple[str, int] | None, _option("right", "count as right")] = None,
    truncated: Annotated[tuple[str, int] | None, _option("truncated", "reached the maximum length")] = None,
    failed: Annotated[
        tuple[str, int] | None, _option("failed", "could not be graded, timed out, or raised an error")
    ] = None,
    disputed: Annotated[
        tuple[str, int] | None, _option("disputed", "the benchmark's public grader judges otherwise")
    ] = None,
    problem: Annotated[
        str | None, typer.Option("--problem", metavar="ID", help="All answers to one problem.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Read the answers of an evaluation: with prompt, completion, the answer that was graded, and the reason."""
    check_json_target(json_file)
    from megatron_prism.evaluation.answers import answered_suites, find_answers

    folder = find_answers(run)
    given = {"wrong": wrong, "right": right, "truncated": truncated, "failed": failed, "disputed": disputed}
    asked = {kind: each for kind, each in given.items() if each is not None}
    if not asked and problem is None:
        _show_counts(folder, answered_suites(folder), json_file)
        return
    found: list[dict[str, Any]] = []
    for kind, (suite, count) in asked.items():
        whole_number(count, f"--{kind}", least=1)
        answers = list(islice(_chosen(folder, suite, KINDS[kind]), count))
        if not answers:
            show_line(json_file, f"{suite}: no answer is {kind}")
        found += answers
    if problem is not None:
        answers = list(_chosen(folder, None, lambda answer: answer["id"] == problem))
        if not answers:
            raise ConfigError(f"--problem {problem}: {folder} has no answers to a problem with this id")
        found += answers
    for answer in found:
        _show(answer, json_file)
    write_result(json_file, found)


def _chosen(
    folder: Path, suite: str | None, kept: Callable[[Mapping[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
    from megatron_prism.evaluation.answers import read_answers

    columns = ("id", "sample", "prompt", "completion", "correct", *FACTS)
    return (answer for answer in read_answers(folder, suite, columns) if kept(answer))


def _show(answer: Mapping[str, Any], json_file: str | None) -> None:
    verdict = "right" if answer["correct"] else "not right"
    show_line(json_file, f"──── {answer['suite']} · {answer['id']} · sample {answer['sample']} · {verdict}")
    for name in ("prompt", "completion"):
        show_line(json_file, f"{name}:\n{answer[name]}\n")
    shown = {**answer, "seconds": round(answer["seconds"], 2)}
    facts = [f"{name}: {shown[name]}" for name in FACTS if shown[name] not in (None, "")]
    show_line(json_file, " · ".join(facts))


def _show_counts(folder: Path, suites: list[str], json_file: str | None) -> None:
    """How many answers of each kind there are."""
    from megatron_prism.evaluation.answers import read_answers

    rows = []
    for suite in suites:
        columns = ("correct", "reason", "finish_reason", "published")
        answers = list(read_answers(folder, suite, columns))
        rows.append({"suite": suite, "answers": len(answers)})
        rows[-1] |= {kind: sum(map(kept, answers)) for kind, kept in KINDS.items()}
    show_table(json_file, str(folder), list(rows[0]), [list(row.values()) for row in rows])
    show_line(json_file, f"read some: prism eval show {folder} --wrong {suites[0]} 5")
    write_result(json_file, rows)
