"""The tests of a code problem: three styles, which are checked when read and converted to the form in which they run.

- Assert statements, as text: `assert f(2) == 4`. If one side is a literal, only the other side is sent to the program's
  process, and the value is compared outside it. Any other statement runs in the program's interpreter.
- Functions: `{"function": "f", "arguments": [2], "expected": 4}`, compared outside. Values come from JSON, so a tuple
  equals a list of the same items.
- Scripts: `{"input": "2\\n", "output": "4\\n"}`: the program's input and the output it must print. Spaces at the end of
  a line and empty lines at the end do not count.
"""

from __future__ import annotations

import ast
import keyword
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.verification.sandbox.inside.plain_text import plain

CodeTest = str | Mapping[str, Any]

FUNCTION_KEYS = ("function", "arguments", "expected")
SCRIPT_KEYS = ("input", "output")


@dataclass(frozen=True)
class Step:
    """One request to a program that has run, the expected reply, and the reason to report if the reply differs."""

    request: dict[str, Any]
    expected: str
    failure: str


@dataclass(frozen=True)
class Case:
    """One run of a program as a script."""

    input: bytes
    output: str


@dataclass(frozen=True)
class CodeTests:
    """Parsed tests: either `steps` or `cases` is empty, not both."""

    steps: list[Step] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


def parse_tests(tests: Sequence[CodeTest], where: str = "tests") -> CodeTests:
    """Check `tests` and prepare them. Each statement gets a new random token in every call.

    Args:
        where: the beginning of error messages, such as `FILE:LINE: 'tests'`.

    Raises:
        DataError: if there are no tests (any program would pass), styles are mixed, a key or type is wrong, or an
            assert is not valid Python. The message has the number of the test, counted from 0.
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
    steps: list[Step] = []
    cases: list[Case] = []
    for number, test in enumerate(tests):
        place = f"{where}[{number}]"
        if isinstance(test, str):
            steps += _statements(test, place)
        elif "function" in test:
            steps.append(_function(test, place))
        else:
            cases.append(_case(test, place))
    return CodeTests(steps, cases)


def _style(test: CodeTest, place: str) -> str:
    if isinstance(test, str):
        return "assert statements"
    if not isinstance(test, Mapping):
        raise DataError(f"{place}: a test must be text or a mapping, found {type(test).__name__}")
    keys = FUNCTION_KEYS if "function" in test else SCRIPT_KEYS
    for key in test:
        if key not in keys:
            raise DataError(
                f"{place}: unknown key '{key}'{suggest(str(key), (*FUNCTION_KEYS, *SCRIPT_KEYS))}"
            )
    for key in keys:
        if key not in test:
            raise DataError(
                f"{place}: key '{key}' is missing; a test is an assert statement, "
                f"{{{', '.join(FUNCTION_KEYS)}}} or {{{', '.join(SCRIPT_KEYS)}}}"
            )
    return "functions" if "function" in test else "scripts"


def _statements(source: str, place: str) -> list[Step]:
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError) as problem:
        raise DataError(f"{place}: not Python ({problem}); write it as an assert statement") from None
    if not body:
        raise DataError(f"{place}: contains no statement; write it as an assert statement")
    return [_statement(statement) for statement in body]


def _statement(statement: ast.stmt) -> Step:
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            for sent, literal in ((left, right), (right, left)):
                expected = _literal(literal)
                if expected is not None and _literal(sent) is None:
                    return Step({"expression": ast.unparse(sent)}, expected, "assertion")
    token = secrets.token_hex(16)
    return Step({"statement": ast.unparse(statement), "token": token}, token, "crashed")


def _literal(node: ast.expr) -> str | None:
    """The plain text of a literal, or None if `node` is not a literal."""
    try:
        return plain(ast.literal_eval(node))
    except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
        return None


def _function(test: Mapping[str, Any], place: str) -> Step:
    name, arguments = test["function"], test["arguments"]
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise DataError(f"{place}: 'function' must be the name of a function, found {name!r}")
    if not isinstance(arguments, list):
        raise DataError(f"{place}: 'arguments' must be a list, found {type(arguments).__name__}")
    try:
        expected = plain(test["expected"], tuples_are_lists=True)
    except (TypeError, RecursionError) as problem:
        raise DataError(f"{place}: 'expected' cannot be compared ({problem}); give JSON values") from None
    return Step({"function": name, "arguments": arguments}, expected, "wrong")


def _case(test: Mapping[str, Any], place: str) -> Case:
    for key in SCRIPT_KEYS:
        if not isinstance(test[key], str):
            raise DataError(f"{place}: '{key}' must be text, found {type(test[key]).__name__}")
    return Case(test["input"].encode("utf-8", "surrogatepass"), normal_output(test["output"]))


def normal_output(text: str) -> str:
    """`text` without spaces at the ends of lines and without empty lines at its end."""
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()
