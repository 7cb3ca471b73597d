"""Question: how many answers per second does one core grade, for each kind of answer and each mode of isolation?

    python benchmarks/grading.py --json result.json

The pool has one worker; the answers are trivial and correct. All processes (this one, the worker, the sandbox with its
programs) run on one core, so rates are per core. The start of a worker is timed separately.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import measure
from rich.console import Console
from rich.table import Table

from megatron_prism.verification.grade import GradeItem, grade_all, grader_versions
from megatron_prism.verification.sandbox.isolation import STRONG, WEAK
from megatron_prism.verification.settings import GradingSettings

PROGRAM = "```python\ndef f(x):\n    return x * x\n```"
SCRIPT = "```python\nprint(int(input()) ** 2)\n```"


def kinds(answers: int) -> dict[str, tuple[str, list[GradeItem]]]:
    """Name of a table row -> mode of isolation and items; slow kinds have fewer items."""
    asserts = ["assert f(2) == 4", "assert f(-3) == 9"]
    statements = ["assert abs(f(2) - 4) < 1e-6"]
    functions = [{"function": "f", "arguments": [x], "expected": x * x} for x in (2, -3)]
    scripts = [{"input": "3\n", "output": "9\n"}]
    strong = {
        "code, asserts": [GradeItem("code", PROGRAM, tests=[*asserts])] * answers,
        "code, statements": [GradeItem("code", PROGRAM, tests=[*statements])] * answers,
        "code, functions": [GradeItem("code", PROGRAM, tests=[*functions])] * answers,
        "code, script": [GradeItem("code", SCRIPT, tests=[*scripts])] * answers,
    }
    roots = [
        GradeItem("math", rf"\boxed{{{i + 1}\sqrt{{2}}}}", rf"\sqrt{{{2 * (i + 1) ** 2}}}")
        for i in range(answers)
    ]
    return {
        **{name: (STRONG, items) for name, items in strong.items()},
        "code, asserts, sandbox=weak": (WEAK, strong["code, asserts"][: max(1, answers // 10)]),
        "math, compared as text": (STRONG, [GradeItem("math", r"\boxed{7}", "7")] * (10 * answers)),
        "math, a realistic mix": (STRONG, realistic(10 * answers)),
        "math, algebra": (STRONG, roots),
        "choice": (STRONG, [GradeItem("choice", r"\boxed{C}", "C")] * (10 * answers)),
    }


def realistic(answers: int) -> list[GradeItem]:
    """Right answers as they come in: of a hundred, 97 are numbers, fractions, units or pairs; three need algebra."""
    thinking = "<think>" + "We have $x^2 + 1$ and so on, step by step. " * 40 + "</think>The answer is "
    forms = (
        (60, "{n}", "{n}"),
        (10, "\\frac{{{n}}}{{{m}}}", "{n}/{m}"),
        (10, "{n},000", "{n}000"),
        (9, "{n}\\text{{ cm}}", "{n}"),
        (8, "({n}, {m})", "({n},{m})"),
        (3, "{n}\\sqrt{{2}}", "\\sqrt{{{d}}}"),
    )
    patterns = [(boxed, gold) for count, boxed, gold in forms for _ in range(count)]
    items = []
    for index in range(answers):
        boxed, gold = patterns[index * 37 % len(patterns)]
        values = {"n": index % 900 + 1, "m": index % 7 + 2, "d": 2 * (index % 900 + 1) ** 2}
        items.append(
            GradeItem("math", rf"{thinking}$\boxed{{{boxed.format(**values)}}}$.", gold.format(**values))
        )
    return items


def rate(mode: str, items: list[GradeItem], rounds: int) -> dict[str, Any]:
    """Answers per second: the median over the rounds, the slowest and the fastest; seconds to the first verdict."""
    with GradingSettings(workers=1, timeout_seconds=30.0).open_pool() as pool:
        start = time.perf_counter()
        grade_all(items[:1], pool, sandbox=mode)
        first = time.perf_counter() - start
        rates = []
        for _ in range(rounds):
            start = time.perf_counter()
            grades = grade_all(items, pool, sandbox=mode)
            rates.append(len(items) / (time.perf_counter() - start))
            assert all(grade.correct for grade in grades)
    return {
        "answers": len(items),
        "per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "first_seconds": first,
    }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--answers", type=int, default=500, help="programs per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", help="only rows whose name starts with this, such as 'code' or 'math'", default=""
    )
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results = {
        name: rate(mode, items, arguments.rounds)
        for name, (mode, items) in kinds(arguments.answers).items()
        if name.startswith(arguments.only)
    }
    table = Table(title="answers per second on one core")
    for column in ("", "answers", "per second", "slowest", "fastest", "first, s"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results.items():
        speeds = (f"{row[key]:,.0f}" for key in ("per_second", "slowest", "fastest"))
        table.add_row(name, f"{row['answers']:,}", *speeds, f"{row['first_seconds']:.2f}")
    Console().print(table)
    measure.write(arguments, {"graders": grader_versions(["code"], STRONG), "results": results})


if __name__ == "__main__":
    main()
