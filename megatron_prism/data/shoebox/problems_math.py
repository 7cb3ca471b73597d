"""Arithmetic whose every step comes from a small table, so that a small model can learn the steps and compose them.

Chains modulo 7 (77 one-digit facts), running sums, extremes and orders of digits, two-digit addition and subtraction
column by column with the carry written out, linear equations. Each step of a chain is named by the ordinal that
the question uses, and lists are repeated with the running value after each digit. So the next input can be copied from
the same word or digit in the question, and each result is next to its inputs. A model this small sorts digits correctly
only sometimes, so this is what it learns in reinforcement learning.
"""

from __future__ import annotations

import random
from functools import partial

from megatron_prism.data.shoebox.problem import Family, GeneratedProblem, boxed

SUITE = "math"
ORDINALS = ("first", "second", "third", "fourth")
# All arithmetic of chains and running sums is modulo this: results stay single digits, and the facts are few.
MODULUS = 7
CHAIN_OPERATIONS = [(symbol, n) for symbol, least in (("+", 1), ("*", 2)) for n in range(least, MODULUS)]


def apply_operation(value: int, symbol: str, number: int) -> int:
    """One step of a chain."""
    return (value + number if symbol == "+" else value * number) % MODULUS


def chain(rng: random.Random, steps: int) -> GeneratedProblem:
    """A start digit and `steps` operations modulo 7."""
    start, operations = rng.randrange(MODULUS), [rng.choice(CHAIN_OPERATIONS) for _ in range(steps)]
    named = list(zip(ORDINALS, operations, strict=False))
    listed = ", ".join(f"{ordinal} {symbol}{number}" for ordinal, (symbol, number) in named)
    question = rng.choice(
        (
            f"Start with {start}, do {listed}, all modulo {MODULUS}.",
            f"Modulo {MODULUS}, what is {start} after {listed}?",
        )
    )
    value, written = start, [str(start)]
    for ordinal, (symbol, number) in named:
        value = apply_operation(value, symbol, number)
        written.append(f"{ordinal} {symbol}{number}={value}")
    key = f"{start}{''.join(f'{symbol}{number}' for symbol, number in operations)}"
    return _problem(f"chain{steps}", key, question, " ".join(written), answer=value)


def running_sum(rng: random.Random, length: int) -> GeneratedProblem:
    """The sum of different digits, modulo 7 (different, so that each digit identifies the next one)."""
    digits = rng.sample(range(MODULUS), length)
    listed = ", ".join(map(str, digits))
    question = rng.choice(
        (
            f"What is the sum of {listed} modulo {MODULUS}?",
            f"Add up {listed}. What is the result modulo {MODULUS}?",
        )
    )
    value, written = digits[0], [str(digits[0])]
    for digit in digits[1:]:
        value = (value + digit) % MODULUS
        written.append(f"{digit}={value}")
    return _problem(f"sum{length}", listed, question, ", ".join(written), answer=value)


def extreme(rng: random.Random, name: str, length: int) -> GeneratedProblem:
    """The largest or smallest of different digits, by comparing along the list."""
    digits = rng.sample(range(10), length)
    listed = ", ".join(map(str, digits))
    question = rng.choice((f"Which digit is the {name} of {listed}?", f"Find the {name} of {listed}."))
    choose = max if name == "largest" else min
    value, written = digits[0], [str(digits[0])]
    for digit in digits[1:]:
        value = choose(value, digit)
        written.append(f"{digit}:{value}")
    return _problem(f"{name}{length}", listed, question, ", ".join(written), answer=value)


def ordered(rng: random.Random, length: int) -> GeneratedProblem:
    """Different digits, smallest first; the answer is the number that the sorted digits form."""
    digits = rng.sample(range(1, 10), length)
    listed = ", ".join(map(str, digits))
    question = rng.choice((f"Sort {listed}, smallest first.", f"Put {listed} in order, smallest first."))
    written = sorted(digits)
    answer = int("".join(map(str, written)))
    return _problem(f"sort{length}", listed, question, ", ".join(map(str, written)), answer=answer)


def addition(rng: random.Random) -> GeneratedProblem:
    """Two two-digit numbers whose sum stays below 100; ones first, with the carry always written."""
    left = rng.randrange(10, 90)
    right = rng.randrange(10, 100 - left)
    ones = left % 10 + right % 10
    thoughts = (
        f"ones {left % 10}+{right % 10}={ones:02d}\ntens {left // 10}+{right // 10}+{ones // 10}="
        + str(left // 10 + right // 10 + ones // 10)
    )
    return _problem(
        "add2", f"{left}+{right}", _calculate(rng, f"{left}+{right}"), thoughts, answer=left + right
    )


def subtraction(rng: random.Random) -> GeneratedProblem:
    """Two two-digit numbers whose difference has two digits; ones first, with the borrowed ten always written."""
    left = rng.randrange(20, 100)
    right = rng.randrange(10, left - 9)
    borrow = int(left % 10 < right % 10)
    thoughts = (
        f"ones {borrow}{left % 10}-{right % 10}={10 * borrow + left % 10 - right % 10}\n"
        f"tens {left // 10}-{borrow}-{right // 10}={left // 10 - borrow - right // 10}"
    )
    return _problem(
        "sub2", f"{left}-{right}", _calculate(rng, f"{left}-{right}"), thoughts, answer=left - right
    )


def equation(rng: random.Random) -> GeneratedProblem:
    """a x + b = c with one-digit a, b and x."""
    slope, offset, solution = rng.randrange(2, 10), rng.randrange(1, 10), rng.randrange(1, 10)
    total = slope * solution + offset
    question = rng.choice(
        (f"Solve {slope}x+{offset}={total} for x.", f"What is x if {slope}x+{offset}={total}?")
    )
    product = slope * solution
    thoughts = f"{slope}x={total}-{offset}={product}\nx={product}/{slope}={solution}"
    return _problem("solve", f"{slope}x+{offset}={total}", question, thoughts, answer=solution)


FAMILIES = {
    "chain1": Family(5, partial(chain, steps=1)),
    "chain2": Family(5, partial(chain, steps=2)),
    "chain3": Family(5, partial(chain, steps=3)),
    "chain4": Family(3, partial(chain, steps=4)),
    "sum3": Family(4, partial(running_sum, length=3)),
    "sum4": Family(2, partial(running_sum, length=4)),
    "largest3": Family(4, partial(extreme, name="largest", length=3)),
    "largest4": Family(4, partial(extreme, name="largest", length=4)),
    "largest6": Family(4, partial(extreme, name="largest", length=6)),
    "smallest3": Family(4, partial(extreme, name="smallest", length=3)),
    "smallest4": Family(4, partial(extreme, name="smallest", length=4)),
    "smallest6": Family(4, partial(extreme, name="smallest", length=6)),
    "sort2": Family(4, partial(ordered, length=2)),
    "sort3": Family(18, partial(ordered, length=3)),
    "sort4": Family(18, partial(ordered, length=4)),
    "add2": Family(5, addition),
    "sub2": Family(3, subtraction),
    "solve": Family(4, equation),
}


def _calculate(rng: random.Random, expression: str) -> str:
    return rng.choice((f"What is {expression}?", f"Calculate {expression}."))


def _problem(level: str, key: str, question: str, thoughts: str, *, answer: int) -> GeneratedProblem:
    return GeneratedProblem(SUITE, level, key, question, thoughts, boxed(str(answer)), "math", str(answer))
