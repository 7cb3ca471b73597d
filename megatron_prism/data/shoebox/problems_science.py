"""Multiple-choice science from small tables: formulas with one-digit factors, twenty elements, units, states of water.

A problem with a formula or a state is identified by its numbers: those of a held-out problem never occur in training,
whatever the options. A problem about a fact (an element's symbol) is identified by the fact and its options, because a
fact that was never seen cannot be derived.
Constants: symbols and atomic numbers from IUPAC's periodic table, units from the SI.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from megatron_prism.data.shoebox.problem import Family, GeneratedProblem, boxed

SUITE = "science"
LETTERS = "ABCD"
FACTORS = range(2, 10)
ELEMENTS = (
    "hydrogen H,helium He,lithium Li,beryllium Be,boron B,carbon C,nitrogen N,oxygen O,fluorine F,neon Ne,"
    "sodium Na,magnesium Mg,aluminium Al,silicon Si,phosphorus P,sulfur S,chlorine Cl,argon Ar,potassium K,calcium Ca"
)
SYMBOLS = {name: symbol for name, symbol in (entry.split() for entry in ELEMENTS.split(","))}
NUMBERS = {name: str(number) for number, name in enumerate(SYMBOLS, 1)}
UNITS = {
    "length": "metre",
    "mass": "kilogram",
    "time": "second",
    "electric current": "ampere",
    "temperature": "kelvin",
    "force": "newton",
    "energy": "joule",
    "power": "watt",
    "pressure": "pascal",
    "frequency": "hertz",
    "voltage": "volt",
    "resistance": "ohm",
}
# Formulas "quotient = first / second" and "product = first * second".
QUOTIENTS = {
    "speed": "A cart goes {0} m in {1} s. What is its speed in m/s?",
    "density": "A stone of {0} g takes up {1} ml. What is its density in g/ml?",
    "current": "A voltage of {0} V drives a resistor of {1} ohm. What is the current in A?",
}
PRODUCTS = {
    "force": "A mass of {0} kg speeds up by {1} m/s in each second. What is the force in N?",
    "distance": "A cart goes {0} m/s for {1} s. How far does it go in m?",
}
STATES = ("solid", "liquid", "gas", "plasma")


def quotient(rng: random.Random, name: str) -> GeneratedProblem:
    """A measured total over a one-digit divisor; the options are single digits."""
    divisor, result = rng.choice(FACTORS), rng.choice(FACTORS)
    total = divisor * result
    options = [str(result), *map(str, rng.sample([n for n in range(1, 10) if n != result], 3))]
    return _choice(rng, name, f"{total}/{divisor}", QUOTIENTS[name].format(total, divisor), options=options)


def product(rng: random.Random, name: str) -> GeneratedProblem:
    """Two one-digit factors; the wrong options are other products."""
    left, right = rng.choice(FACTORS), rng.choice(FACTORS)
    others = sorted({a * b for a in FACTORS for b in FACTORS} - {left * right})
    options = [str(left * right), *map(str, rng.sample(others, 3))]
    return _choice(rng, name, f"{left}*{right}", PRODUCTS[name].format(left, right), options=options)


def fact(rng: random.Random, name: str) -> GeneratedProblem:
    """An element's symbol or number, or a quantity's unit."""
    question, table = {
        "symbol": ("What is the chemical symbol of {0}?", SYMBOLS),
        "number": ("What is the atomic number of {0}?", NUMBERS),
        "unit": ("What is the SI unit of {0}?", UNITS),
    }[name]
    subject = rng.choice(list(table))
    others = rng.sample([value for key, value in table.items() if key != subject], 3)
    key = f"{subject}|{','.join(sorted(others))}"
    return _choice(
        rng, name, key, question.format(subject), options=[table[subject], *others], stated=f"{subject} is "
    )


def state(rng: random.Random) -> GeneratedProblem:
    """Water at a whole number of degrees Celsius and normal pressure, away from its melting and boiling point."""
    degrees = rng.choice([t for t in range(-99, 200) if t not in (0, 100)])
    if degrees < 0:
        right, reason = "solid", f"{degrees} is below 0: "
    elif degrees < 100:
        right, reason = "liquid", f"{degrees} is between 0 and 100: "
    else:
        right, reason = "gas", f"{degrees} is above 100: "
    options = [right, *(other for other in STATES if other != right)]
    question = f"At {degrees} degrees Celsius and normal pressure, what is water?"
    return _choice(rng, "state", str(degrees), question, options=options, stated=reason)


FAMILIES = {
    **{name: Family(12, partial(quotient, name=name)) for name in QUOTIENTS},
    **{name: Family(10, partial(product, name=name)) for name in PRODUCTS},
    "symbol": Family(14, partial(fact, name="symbol")),
    "number": Family(8, partial(fact, name="number")),
    "unit": Family(12, partial(fact, name="unit")),
    "state": Family(10, state),
}


def _choice(
    rng: random.Random,
    level: str,
    key: str,
    question: str,
    *,
    options: Sequence[str],
    stated: str | None = None,
) -> GeneratedProblem:
    """A problem whose correct answer is `options[0]`; the options are shuffled, and `stated` begins the thoughts."""
    right = options[0]
    shuffled = rng.sample(options, len(options))
    letter = LETTERS[shuffled.index(right)]
    listed = " ".join(f"({name}) {option}" for name, option in zip(LETTERS, shuffled, strict=True))
    stated = f"{key}=" if stated is None else stated
    thoughts = f"{stated}{right}, so ({letter}) {right}"
    return GeneratedProblem(
        SUITE, level, key, f"{question} {listed}", thoughts, boxed(letter), "choice", letter
    )
