"""The tests of a code problem: three styles, which are checked when read and converted to the form in which they run.

- Assert statements, as text: `assert f(2) == 4`. If one side is a literal, only the other side is sent to the program's
  process, and the value is compared outside it. Any other statement runs in the program's interpreter.
- Functions: `{"function": "f", "arguments": [2], "expected": 4}`, compared outside. Values come from JSON, so a tuple
  equals a list of the same items. `f` may be a method of the program's class `Solution`.
- Scripts: `{"input": "2\\n", "output": "4\\n"}`: the program's input and the output it must print, which are compared
  as output_comparison.py describes. With `"checker"`, the source of a Python program, that program decides
  (checker.py).

The records of LiveCodeBench are tests of the last two styles: with `"testtype": "stdin"` a script, and with
`"testtype": "functional"` a function, whose arguments are the lines of `input` as JSON, whose expected value is
`output` as JSON, and whose name is in `fn_name`, `func_name` or `metadata`. Functions and scripts may have a
`time_limit` in seconds for this test alone.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.verification.sandbox.inside.plain_text import plain
from megatron_prism.verification.sandbox.output_comparison import normal_output
from megatron_prism.verification.sandbox.statements import Step, statements

CodeTest = str | Mapping[str, Any]

FUNCTION_KEYS = ("function", "arguments", "expected")
SCRIPT_KEYS = ("input", "output")
# Keys of LiveCodeBench's records beside SCRIPT_KEYS; the first three name the function of a functional test.
NAME_KEYS = ("fn_name", "func_name", "metadata")
STDIN, FUNCTIONAL = "stdin", "functional"
TEST_TYPES = (STDIN, FUNCTIONAL)
OPTIONAL_KEYS = {
    "functions": ("time_limit",),
    "scripts": ("testtype", *NAME_KEYS, "checker", "time_limit"),
}
# `f`, or a method: `Solution().f`, `Geometry.area`.
_FUNCTION = re.compile(r"[^\W\d]\w*(?:(?:\(\))?(?:\.[^\W\d]\w*)+)?")


@dataclass(frozen=True)
class Case:
    """One run of a program as a script.

    Attributes:
        input: its standard input.
        text: the expected output as given, which a checker reads.
        output: the lines of the expected output.
        checker: source of the program that decides whether an output is right; empty: the outputs are compared.
        time_limit: seconds for this run, or None.
        livecodebench: whether the record is LiveCodeBench's, so that its harness's rules apply (inside/program.py).
    """

    input: bytes
    text: str
    output: list[str]
    checker: str = ""
    time_limit: float | None = None
    livecodebench: bool = False


@dataclass(frozen=True)
class CodeTests:
    """Parsed tests: either `steps` or `cases` is empty, not both.

    Attributes:
        count: number of tests as given; each has one or more steps, or one case.
        livecodebench: whether the records are LiveCodeBench's.
    """

    steps: list[Step] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    count: int = 0
    livecodebench: bool = False


def parse_tests(tests: Sequence[CodeTest], where: str = "tests") -> CodeTests:
    """Check `tests` and prepare them. Each statement gets a new random token in every call.

    Args:
        where: the beginning of error messages, such as `FILE:LINE: 'tests'`.

    Raises:
        DataError: if there are no tests (any program would pass), styles are mixed, a key or type is wrong, or an
            assert or a checker is not valid Python. The message has the number of the test, counted from 0.
    """
    if isinstance(tests, str) or not isinstance(tests, Sequence):
        raise DataError(f"{where}: expected a list of tests, found {type(tests).__name__}")
    if not tests:
        raise DataError(f"{where} is empty: without tests any program would pass; give at least one")
    styles = {_style(test, f"{where}[{number}]") for number, test in enumerate(tests)}
    if len(styles) > 1:
        raise DataError(
            f"{where}: mixes {' and '.join(sorted(styles))}; all tests of a problem must have the same style"
        )
    style = styles.pop()
    steps: list[Step] = []
    cases: list[Case] = []
    for number, test in enumerate(tests):
        place = f"{where}[{number}]"
        if isinstance(test, str):
            steps += statements(test, place, number)
        elif style == "functions":
            steps.append(_function(test, place, number))
        else:
            cases.append(_case(test, place))
    livecodebench = any(isinstance(test, Mapping) and "testtype" in test for test in tests)
    return CodeTests(steps, cases, len(tests), livecodebench)


def _style(test: CodeTest, place: str) -> str:
    if isinstance(test, str):
        return "assert statements"
    if not isinstance(test, Mapping):
        raise DataError(f"{place}: a test must be text or a mapping, found {type(test).__name__}")
    written = "functions" if "function" in test else "scripts"
    keys = FUNCTION_KEYS if written == "functions" else SCRIPT_KEYS
    known = (*keys, *OPTIONAL_KEYS[written])
    for key in test:
        if key not in known:
            every = (*FUNCTION_KEYS, *SCRIPT_KEYS, *OPTIONAL_KEYS["scripts"])
            raise DataError(
                f"{place}: unknown key '{key}'{suggest(str(key), every)}; a test of this style has {', '.join(known)}"
            )
    for key in keys:
        if key not in test:
            raise DataError(
                f"{place}: key '{key}' is missing; a test is an assert statement, "
                f"{{{', '.join(FUNCTION_KEYS)}}} or {{{', '.join(SCRIPT_KEYS)}}}"
            )
    if written == "functions":
        return written
    kind = test.get("testtype")
    if kind is not None and kind not in TEST_TYPES:
        raise DataError(f"{place}: 'testtype' is {kind!r}{suggest(str(kind), TEST_TYPES)}")
    named = _function_name(test, place) is not None
    if kind == FUNCTIONAL and not named:
        raise DataError(
            f"{place}: a functional test needs the function's name; copy it from 'metadata' of LiveCodeBench's record "
            "to 'fn_name'"
        )
    return "functions" if kind == FUNCTIONAL or (named and kind is None) else "scripts"


def _function_name(test: Mapping[str, Any], place: str) -> Any:
    """The function that a record of LiveCodeBench names, or None."""
    for key in ("fn_name", "func_name"):
        if test.get(key) is not None:
            return test[key]
    metadata = test.get("metadata")
    if isinstance(metadata, str) and metadata.strip():
        metadata = _json(metadata, f"{place}: 'metadata'")
    if metadata is not None and not isinstance(metadata, Mapping | str):
        raise DataError(f"{place}: 'metadata' must be a mapping, found {type(metadata).__name__}")
    return metadata.get("func_name") if isinstance(metadata, Mapping) else None


def _function(test: Mapping[str, Any], place: str, number: int) -> Step:
    if "function" in test:
        name, arguments, expected, key = test["function"], test["arguments"], test["expected"], "function"
    else:
        name, key = _function_name(test, place), "fn_name"
        arguments = [
            _json(line, f"{place}: a line of 'input'")
            for line in _text(test, "input", place).split("\n")
            if line.strip()
        ]
        expected = _json(_text(test, "output", place), f"{place}: 'output'")
    if not isinstance(name, str) or not _FUNCTION.fullmatch(name) or not _is_python(name):
        raise DataError(f"{place}: '{key}' must be the name of a function, found {name!r}")
    if not isinstance(arguments, list):
        raise DataError(f"{place}: 'arguments' must be a list, found {type(arguments).__name__}")
    try:
        text = plain(expected, tuples_are_lists=True)
    except (TypeError, RecursionError) as problem:
        raise DataError(f"{place}: 'expected' cannot be compared ({problem}); give JSON values") from None
    return Step({"function": name, "arguments": arguments}, text, "wrong", number, _time_limit(test, place))


def _case(test: Mapping[str, Any], place: str) -> Case:
    # Files from Windows: a judge there reads `\r\n` as one line end, and so do the authors' harnesses.
    given = _text(test, "input", place).replace("\r\n", "\n").encode("utf-8", "surrogatepass")
    output = _text(test, "output", place)
    checker = test.get("checker") or ""
    if not isinstance(checker, str) or (checker and not _is_python(checker)):
        raise DataError(
            f"{place}: 'checker' is not a Python program; give its source, or leave the key out to compare outputs"
        )
    limit = _time_limit(test, place)
    return Case(given, output, normal_output(output), checker, limit, "testtype" in test)


def _text(test: Mapping[str, Any], key: str, place: str) -> str:
    """The text of `key`; a list of lines is joined, as LiveCodeBench's harness does."""
    value = test[key]
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise DataError(f"{place}: '{key}' must be text, found {type(value).__name__}")
    return value


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise DataError(f'{what} is not JSON: {shown!r}; write values such as 3, "a" or [1, 2]') from None


def _time_limit(test: Mapping[str, Any], place: str) -> float | None:
    limit = test.get("time_limit")
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise DataError(f"{place}: 'time_limit' must be a positive number of seconds, found {limit!r}")
    return float(limit)


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
