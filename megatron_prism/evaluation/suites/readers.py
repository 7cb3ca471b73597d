"""What a row of a known data set holds besides plain columns: the tests of a program, and parts of its statement.

A reader adds columns for the prompt and gives the tests, or says why the problem cannot be graded. `rows` is for tables
whose tests, if any, are in a column as docs/verification.md describes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_prism.errors import DataError
from megatron_prism.evaluation.suites.definition import CODEFORCES, LIVECODEBENCH, ROWS
from megatron_prism.verification.sandbox.code_tests import FUNCTIONAL, STDIN, CodeTest
from megatron_prism.verification.sandbox.livecodebench import livecodebench_tests


@dataclass(frozen=True)
class Prepared:
    """What a reader makes of a row.

    Attributes:
        columns: added to the row's own, or in their place.
        tests: of a code problem.
        fault: why no program could be graded on this row; empty if it can be.
        notes: what is to be counted about the row, although it is graded.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    tests: list[CodeTest] = field(default_factory=list)
    fault: str = ""
    notes: tuple[str, ...] = ()


def plain_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> Prepared:
    """A row of any table; `tests` is a list, or JSON text of one."""
    tests = row.get(columns.get("tests", "tests"))
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError) as problem:
            return Prepared(fault=f"its tests are not JSON ({problem})")
    if tests is not None and not isinstance(tests, list):
        return Prepared(fault=f"its tests are {type(tests).__name__}, not a list")
    return Prepared(tests=tests or [])


def livecodebench_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> Prepared:
    """A record of code_generation_lite: column `form` is "stdin" or "functional".

    Public and private tests count, as in LiveCodeBench; Evalchemy runs the private ones only.
    """
    try:
        tests = livecodebench_tests(row, "its record")
    except DataError as problem:
        return Prepared(fault=str(problem))
    stdin = any(isinstance(test, Mapping) and test.get("testtype") == STDIN for test in tests)
    return Prepared({"form": STDIN if stdin else FUNCTIONAL}, tests)


def codeforces_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> Prepared:
    """A record of open-r1/codeforces: columns `examples`, `note` and `editorial` are HTML sections, or empty.

    The official tests count, with the problem's time limit, and its checker decides where there is one. (Evalchemy
    compares the outputs of those too, so that a right output of another form is wrong there.)
    """
    tests, limit = row.get("official_tests"), row.get("time_limit")
    if not tests:
        return Prepared(fault="it has no official tests")
    if row.get("input_mode") == "file":
        return Prepared(fault="its program reads and writes files, not standard input and output")
    if not isinstance(limit, int | float) or isinstance(limit, bool):
        return Prepared(fault="it has no time limit")
    checker = row.get("generated_checker") or ""
    extra = {"time_limit": float(limit), **({"checker": checker} if checker else {})}
    notes = [] if row.get("official_tests_complete", True) else ["not all official tests are public"]
    notes += ["a generated checker decides"] if checker else []
    examples = row.get("examples") or []
    try:
        shown = "".join(
            "<h2>Example</h2>"
            + f"<h3>Input</h3><div>{each['input']}</div><h3>Output</h3><div>{each['output']}</div>"
            for each in examples
        )
        prepared: list[CodeTest] = [
            {"input": test["input"], "output": test["output"], **extra} for test in tests
        ]
    except (KeyError, TypeError) as problem:
        return Prepared(fault=f"its tests or examples are not pairs of input and output ({problem!r})")
    columns_for_prompt = {
        "time_limit": float(limit),
        "examples": shown,
        **{key: row.get(key) or "" for key in ("input_format", "output_format")},
        **{
            key: f"<h2>{key.capitalize()}</h2><div>{row[key]}</div>" if row.get(key) else ""
            for key in ("note", "editorial")
        },
    }
    return Prepared(columns_for_prompt, prepared, notes=tuple(notes))


ROW_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], Prepared]] = {
    ROWS: plain_row,
    LIVECODEBENCH: livecodebench_row,
    CODEFORCES: codeforces_row,
}
