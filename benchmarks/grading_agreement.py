"""Question: how often do we, and public graders, agree with a careful reader, and how often is a wrong answer rewarded?

    python benchmarks/grading_agreement.py --json result.json

The rows are those of tests/verification/cases whose judgement is not open: mathematical answers in a box and whole
completions. Our rules were mended on these rows, so our figures here are no forecast for other rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.table import Table

from megatron_prism.verification.grade import GradeItem, grade_all, grader_versions
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.settings import GradingSettings

CASES = Path(__file__).parents[1] / "tests" / "verification" / "cases"
LIMIT_SECONDS = 20.0


def rows() -> list[dict[str, Any]]:
    """Completion, reference and judgement of every decided row."""
    found = []
    for name in ("math", "completions"):
        for line in (CASES / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["right"] is not None:
                completion = row.get("completion", rf"\boxed{{{row.get('answer')}}}")
                found.append({"completion": completion, "gold": row["gold"], "right": row["right"]})
    return found


def ours(judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = [GradeItem("math", row["completion"], row["gold"]) for row in judged]
    with GradingSettings(workers=1, timeout_seconds=LIMIT_SECONDS).open_pool() as pool:
        return [
            {"correct": grade.correct, "failed": grade.reason == "timeout"}
            for grade in grade_all(items, pool)
        ]


def peer(name: str, judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    tasks = [{"grader": name, "completion": row["completion"], "gold": row["gold"]} for row in judged]
    with GradingPool("peer_graders", workers=1, timeout_seconds=LIMIT_SECONDS) as pool:
        return [{"correct": False} | result for result in pool.map(tasks)]


def figures(judged: list[dict[str, Any]], verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(verdict["correct"], row["right"]) for verdict, row in zip(verdicts, judged, strict=True)]
    return {
        "rows": len(pairs),
        "agree": sum(given == right for given, right in pairs) / len(pairs),
        "false_rights": sum(given and not right for given, right in pairs),
        "false_wrongs": sum(right and not given for given, right in pairs),
        "failed": sum(bool(verdict.get("failed")) for verdict in verdicts),
    }


def main() -> None:
    arguments = measure.argument_parser(__doc__).parse_args()
    judged = rows()
    results = {"ours": figures(judged, ours(judged))}
    for name in ("math-verify", *(["verl prime_math"] if "VERL" in os.environ else [])):
        results[name] = figures(judged, peer(name, judged))
    wrong = sum(not row["right"] for row in judged)
    table = Table(title=f"{len(judged)} rows, {wrong} of them wrong answers")
    for column in ("", "agree", "false rights", "false wrongs", "time-outs and crashes"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results.items():
        counts = (str(row[key]) for key in ("false_rights", "false_wrongs", "failed"))
        table.add_row(name, f"{100 * row['agree']:.1f} %", *counts)
    Console().print(table)
    measure.write(arguments, {"graders": grader_versions(["math"]), "results": results})


if __name__ == "__main__":
    main()
