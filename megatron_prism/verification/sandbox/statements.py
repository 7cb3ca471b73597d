"""Tests that are statements: which of them are compared outside the program's process, and how the others run.

`assert EXPRESSION == LITERAL` becomes a request for the value of the expression; the literal stays outside. Any other
statement runs in the program's interpreter. Its comparisons (`==`, `<`, `in`, ...) are replaced by calls of
inside/comparison.py there, so that an object of the program's own class which claims to equal everything, or to be
smaller than everything, does not pass `assert abs(f(2) - 4) < 1e-6` or HumanEval's `assert candidate(2) == 4`.
"""

from __future__ import annotations

import ast
import secrets
from dataclasses import dataclass, replace
from typing import Any

from megatron_prism.errors import DataError
from megatron_prism.verification.sandbox.inside.plain_text import plain


@dataclass(frozen=True)
class Step:
    """One request to a program that has run.

    Attributes:
        request: what is sent to the program's process.
        expected: the reply that passes.
        failure: the reason to report if the reply differs.
        test: number of the test to which the step belongs.
        time_limit: seconds for this step, or None.
    """

    request: dict[str, Any]
    expected: str
    failure: str
    test: int = 0
    time_limit: float | None = None


def statements(source: str, place: str, test: int) -> list[Step]:
    """The steps of one test that is text.

    Raises:
        DataError: if it is not Python, or contains no statement.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise DataError(f"{place}: not Python ({problem}); write it as an assert statement") from None
    if not body:
        raise DataError(f"{place}: contains no statement; write it as an assert statement")
    return [_statement(statement, test) for statement in body]


def _statement(statement: ast.stmt, test: int) -> Step:
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            for sent, literal in ((left, right), (right, left)):
                expected = _literal(literal)
                if expected is not None and _literal(sent) is None:
                    return Step({"expression": ast.unparse(sent)}, expected, "assertion", test)
    token = secrets.token_hex(16)
    compare = f"_{secrets.token_hex(8)}"
    changed = ast.fix_missing_locations(_Comparisons(compare).visit(statement))
    request = {"statement": ast.unparse(changed), "compare": compare, "token": token}
    return Step(request, token, "crashed", test)


def with_control(steps: list[Step]) -> list[Step]:
    """`steps` with one more, before a random one of those that are statements: an assert that must fail.

    A program that has found the grader in its own interpreter, and made it accept every statement, accepts this one
    too.
    """
    places = [number for number, step in enumerate(steps) if "token" in step.request]
    if not places:
        return steps
    place = secrets.choice(places)
    number = secrets.randbelow(10**6)
    control = _statement(ast.parse(f"assert {number} > {number + 1}").body[0], steps[place].test)
    return [*steps[:place], replace(control, expected="!assertion"), *steps[place:]]


class _Comparisons(ast.NodeTransformer):
    """Replaces `a < b` by `NAME(('Lt',), a, b)`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
            return node
        operators = ast.Tuple([ast.Constant(type(operator).__name__) for operator in node.ops], ast.Load())
        return ast.Call(ast.Name(self.name, ast.Load()), [operators, node.left, *node.comparators], [])


def _literal(node: ast.expr) -> str | None:
    """The plain text of a literal, or None if `node` is not a literal."""
    try:
        return plain(ast.literal_eval(node))
    except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
        return None
