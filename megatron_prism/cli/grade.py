"""`prism grade`: grade answers that stand in a file, for the first time or again after the grader has changed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_prism.cli.number_checks import above_zero, whole_number
from megatron_prism.errors import ConfigError

# So many answers are read and graded before their verdicts are written.
CHUNK = 1000


def grade(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines with `completion`, `kind`, `answer` or `tests` (also .zst, .gz), or Parquet.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write verdicts here instead of to stdout.")
    ] = None,
    problems: Annotated[
        list[Path] | None,
        typer.Option(
            "--problems",
            metavar="PATH",
            help="Suite file or folder with the answers and tests, joined by `id`.",
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="math, choice, short or code, for records without `kind`.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Grading processes.")] = 2,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one answer.")] = 5.0,
    sandbox: Annotated[
        str, typer.Option("--sandbox", help="'strong', or 'weak', which does not isolate programs.")
    ] = "strong",
) -> None:
    """Grade completions and write one verdict with its reason per line; a summary goes to stderr."""
    whole_number(workers, "--workers", least=1)
    above_zero(timeout, "--timeout")
    from megatron_prism.platform.console import setup_logging
    from megatron_prism.verification.answer_files import load_problems, read_answers
    from megatron_prism.verification.grade import KINDS, grade_all, grader_versions
    from megatron_prism.verification.settings import GradingSettings

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind {kind}: must be one of {', '.join(KINDS)}")
    setup_logging()
    settings = GradingSettings(workers=workers, timeout_seconds=timeout, sandbox=sandbox)
    answers = read_answers(file, None if not problems else load_problems(problems), kind)
    summary = _Summary()
    with settings.open_pool() as pool, _writer(out) as write:
        while chunk := list(islice(answers, CHUNK)):
            grades = grade_all([each.item for each in chunk], pool, sandbox=sandbox)
            for answer, verdict in zip(chunk, grades, strict=True):
                line = answer.verdict(verdict)
                write(line)
                summary.add(line)
    if not summary.answers:
        raise ConfigError(f"{file}: contains no answers")
    summary.show(grader_versions(summary.kinds, sandbox))


class _Summary:
    def __init__(self) -> None:
        self.answers = self.correct = self.changed = self.judged = self.disagree = 0
        self.kinds: set[str] = set()
        self.reasons: Counter[str] = Counter()

    def add(self, line: Mapping[str, Any]) -> None:
        self.answers += 1
        self.correct += line["correct"]
        self.kinds.add(line["kind"])
        self.reasons[line["reason"]] += 1
        self.changed += line.get("before", line["correct"]) != line["correct"]
        if line.get("published") is not None:
            self.judged += 1
            self.disagree += line["published"] != line["correct"]

    def show(self, versions: Mapping[str, str | None]) -> None:
        from megatron_prism.platform.console import console

        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.most_common())
        console.print(
            f"{self.correct:,} of {self.answers:,} answers are correct "
            f"({100 * self.correct / self.answers:.1f} %): {reasons}",
            soft_wrap=True,
        )
        if self.changed:
            console.print(f"verdicts that differ from those in the file: {self.changed:,}", soft_wrap=True)
        if self.judged:
            share = 100 * self.disagree / self.judged
            console.print(
                f"the benchmark's public grader disagrees on {self.disagree:,} of {self.judged:,} ({share:.1f} %)",
                soft_wrap=True,
            )
        used = ", ".join(f"{name} {version}" for name, version in versions.items())
        console.print(f"graded by: {used}", soft_wrap=True)


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    if out is None:
        yield lambda record: print(json.dumps(record), file=sys.stdout)
        return
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out}: give the path of a file in a folder that exists")
    from megatron_prism.pipeline.json_lines import record_writer

    with record_writer(out) as write:
        yield write
