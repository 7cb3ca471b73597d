from __future__ import annotations

from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest

from megatron_prism.errors import DataError
from megatron_prism.verification.sandbox.code_tests import parse_tests
from megatron_prism.verification.sandbox.inside.plain_text import plain

Point = namedtuple("Point", "x y")


class Colour(IntEnum):
    RED = 1


class Equal:
    def __eq__(self, other):
        return True

    __hash__ = None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, -0.0),
        (2, 2 + 0j),
        (0.5, Fraction(1, 2)),
        (0.5, Decimal("0.5")),
        ([10**5000], [1000**1666 * 100]),
        ("é\n\ud800", "é\n\ud800"),
        (b"a", bytearray(b"a")),
        ({1, 2}, frozenset([2, 1])),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
        (Counter("aab"), {"a": 2, "b": 1}),
        ((1, 2), Point(1, 2)),
        (1, Colour.RED),
        ([[(None, float("inf"))]], [[(None, float("inf"))]]),
    ],
)
def test_what_python_calls_equal_has_one_text(one, other):
    assert one == other
    assert plain(one) == plain(other)
    assert plain(one).isascii()
    assert "\n" not in plain(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, "1"),
        ("none", None),
        ("a", b"a"),
        ([1], (1,)),
        ([1, [2]], [[1], 2]),
        (["a,b"], ["a", "b"]),
        ({1: 2}, {1: "2"}),
        ({1}, [1]),
        (0.1 + 0.2, 0.3),
        (float("inf"), float("-inf")),
        (1j, 1),
        ([], {}),
    ],
)
def test_what_differs_has_another_text(one, other):
    assert plain(one) != plain(other)


@pytest.mark.parametrize("value", [Equal(), float("nan"), object(), iter([]), [Equal()], {"a": Equal()}, len])
def test_an_object_that_claims_to_equal_everything_has_no_text(value):
    with pytest.raises(TypeError):
        plain(value)


def test_lists_and_tuples_are_one_for_values_from_json():
    assert plain([(1, 2)], tuples_are_lists=True) == plain([[1, 2]], tuples_are_lists=True)


def test_a_comparison_with_a_literal_keeps_the_literal_at_home():
    (step,) = parse_tests(["assert f(2) == [4, 'x'], 'a message'"]).steps
    assert (step.request, step.expected) == ({"expression": "f(2)"}, plain([4, "x"]))
    (mirrored,) = parse_tests(["assert -3 == f(2)"]).steps
    assert (mirrored.request, mirrored.expected) == ({"expression": "f(2)"}, plain(-3))


@pytest.mark.parametrize(
    "test", ["assert f(2) < 5", "assert f(2) == g(2)", "assert f(2)", "x = f(2)", "assert f(2) is None"]
)
def test_another_statement_travels_with_a_token_that_changes(test):
    (step,), (again,) = parse_tests([test]).steps, parse_tests([test]).steps
    assert step.request["token"] == step.expected != again.expected


def test_several_statements_in_one_text_are_asked_in_order():
    steps = parse_tests(["x = f(2)\nassert x == 4\nassert x < 5"]).steps
    assert [next(iter(step.request)) for step in steps] == ["statement", "expression", "statement"]


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([], "tests is empty: without tests any program would pass"),
        ("assert True", "tests: expected a list of tests, found str"),
        ([3], r"tests\[0\]: a test must be text or a mapping, found int"),
        (["assert f(", ""], r"tests\[0\]: not Python"),
        (["# nothing"], r"tests\[0\]: contains no statement"),
        (["assert f(1) == 1", {"input": "", "output": ""}], "mixes assert statements and scripts"),
        ([{"input": "1", "ouput": "2"}], r"tests\[0\]: unknown key 'ouput'; did you mean 'output'"),
        ([{"input": "1"}], r"tests\[0\]: key 'output' is missing"),
        ([{"input": 1, "output": "2"}], r"tests\[0\]: 'input' must be text, found int"),
        ([{"function": "f", "arguments": []}], r"tests\[0\]: key 'expected' is missing"),
        (
            [{"function": "f()", "arguments": [], "expected": 1}],
            r"tests\[0\]: 'function' must be the name",
        ),
        ([{"function": "f", "arguments": 2, "expected": 1}], r"tests\[0\]: 'arguments' must be a list"),
        ([{"function": "f", "arguments": [], "expected": float("nan")}], r"'expected' cannot be compared"),
    ],
)
def test_malformed_tests_are_named_with_their_place(tests, said):
    with pytest.raises(DataError, match=said):
        parse_tests(tests)
