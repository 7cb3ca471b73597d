"""Small Python functions from a grammar: steps on an integer, on a string, and one comprehension over a list.

The tests come from running the reference solution; the generated functions are safe to run, because the grammar has no
loops, imports or division.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from megatron_prism.data.shoebox.problem import Family, GeneratedProblem

SUITE = "code"
NAMES = ("f", "g", "solve")
TESTS = 4
OPERATORS = {"plus": "+", "minus": "-", "times": "*"}
CONDITIONS = {"even": "x % 2 == 0", "odd": "x % 2 == 1", "positive": "x > 0", "negative": "x < 0"}
REDUCTIONS = {"list": "[{}]", "sum": "sum({})", "sorted list": "sorted({})"}
# String steps: their wording in the question and the expression; {0} is a small number.
STRING_STEPS = {
    "uppercase": "s.upper()",
    "lowercase": "s.lower()",
    "reversed": "s[::-1]",
    "repeated {0} times": "s * {0}",
    "without the first {0} letters": "s[{0}:]",
    "cut to the first {0} letters": "s[:{0}]",
}


def integer_steps(rng: random.Random, steps: int) -> GeneratedProblem:
    """`steps` operations, one after another, on an integer."""
    chosen = [(rng.choice(list(OPERATORS)), rng.randrange(2, 10)) for _ in range(steps)]
    operations = ", then ".join(f"{word} {number}" for word, number in chosen)
    expressions = [f"x {OPERATORS[word]} {number}" for word, number in chosen]
    return _steps(
        rng,
        f"int{steps}",
        "x",
        operations=operations,
        expressions=expressions,
        draw=lambda draw: draw.randrange(-9, 20),
    )


def string_steps(rng: random.Random, steps: int) -> GeneratedProblem:
    """`steps` different operations, one after another, on a string."""
    chosen = [(step, rng.randrange(2, 5)) for step in rng.sample(list(STRING_STEPS), steps)]
    operations = ", then ".join(step.format(number) for step, number in chosen)
    expressions = [STRING_STEPS[step].format(number) for step, number in chosen]
    return _steps(rng, f"text{steps}", "s", operations=operations, expressions=expressions, draw=_word)


def comprehension(rng: random.Random) -> GeneratedProblem:
    """A filter, an operation on each element, and a reduction over a list of integers."""
    name = rng.choice(NAMES)
    reduction, kept = rng.choice(list(REDUCTIONS)), rng.choice(list(CONDITIONS))
    word, number = rng.choice(list(OPERATORS)), rng.randrange(2, 10)
    question = (
        f"Write a Python function {name}(xs) that returns the {reduction} of x {word} {number} "
        f"for each {kept} x in xs."
    )
    body = f"x {OPERATORS[word]} {number} for x in xs if {CONDITIONS[kept]}"
    code = f"def {name}(xs):\n    return {REDUCTIONS[reduction].format(body)}"
    thoughts = f"{kept}: {CONDITIONS[kept]}\n{word} {number}: x {OPERATORS[word]} {number}\n{reduction}"
    key = f"{reduction}|{word} {number}|{kept}"
    return _problem("list", key, question, thoughts=thoughts, code=code, name=name, draw=_numbers)


FAMILIES = {
    "int1": Family(12, partial(integer_steps, steps=1)),
    "int2": Family(24, partial(integer_steps, steps=2)),
    "int3": Family(16, partial(integer_steps, steps=3)),
    "text1": Family(8, partial(string_steps, steps=1)),
    "text2": Family(16, partial(string_steps, steps=2)),
    "list": Family(24, comprehension),
}


def _steps(
    rng: random.Random,
    level: str,
    variable: str,
    *,
    operations: str,
    expressions: list[str],
    draw: Callable[[random.Random], Any],
) -> GeneratedProblem:
    name = rng.choice(NAMES)
    question = f"Write a Python function {name}({variable}) that returns {variable} {operations}."
    lines = [f"    {variable} = {expression}" for expression in expressions]
    code = "\n".join([f"def {name}({variable}):", *lines, f"    return {variable}"])
    thoughts = "\n".join(f"{a}: {e}" for a, e in zip(operations.split(", then "), expressions, strict=True))
    return _problem(level, operations, question, thoughts=thoughts, code=code, name=name, draw=draw)


def _problem(
    level: str,
    key: str,
    question: str,
    *,
    thoughts: str,
    code: str,
    name: str,
    draw: Callable[[random.Random], Any],
) -> GeneratedProblem:
    tests = tuple(_tests(code, name, draw, random.Random(f"{level}|{key}")))
    return GeneratedProblem(
        SUITE, level, key, question, thoughts, f"```python\n{code}\n```", "code", tests=tests
    )


def _tests(code: str, name: str, draw: Callable[[random.Random], Any], rng: random.Random) -> list[str]:
    """Assertions on different inputs, with the outputs of the reference solution."""
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    inputs: list[Any] = []
    while len(inputs) < TESTS:
        value = draw(rng)
        if value not in inputs:
            inputs.append(value)
    return [f"assert {name}({value!r}) == {namespace[name](value)!r}" for value in inputs]


def _word(rng: random.Random) -> str:
    # Longer than the number of letters that any step removes or keeps, so that a missing step changes the result.
    return "".join(rng.choice("abcdeABCDE") for _ in range(rng.randrange(5, 9)))


def _numbers(rng: random.Random) -> list[int]:
    while True:
        values = rng.sample(range(-9, 10), 6)
        # Each filter must keep some numbers, and a sort must change their order.
        parities, signs = [x % 2 for x in values], [x > 0 for x in values if x]
        if 2 <= sum(parities) <= 4 and sum(signs) >= 2 and len(signs) - sum(signs) >= 2:
            return values
