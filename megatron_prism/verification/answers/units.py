"""Units of measurement as a table: dimension and exact size, so that 1 h equals 60 min and 5 kg differs from 5 g.

The table is our own and not a library's because sizes are exact fractions here, and because a word that is no unit must
stay a word: libraries read "cats" as centi-technical atmospheres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Dimension = tuple[tuple[str, Fraction], ...]

_PREFIXES = {
    **{"n": Fraction(1, 10**9), "µ": Fraction(1, 10**6), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)},
    **{
        "c": Fraction(1, 100),
        "d": Fraction(1, 10),
        "h": Fraction(100),
        "k": Fraction(1000),
        "M": Fraction(10**6),
    },
    **{"G": Fraction(10**9), "T": Fraction(10**12), "p": Fraction(1, 10**12), "f": Fraction(1, 10**15)},
}
_LONG_PREFIXES = {
    **{"nano": Fraction(1, 10**9), "micro": Fraction(1, 10**6), "milli": Fraction(1, 1000)},
    **{"centi": Fraction(1, 100), "deci": Fraction(1, 10), "kilo": Fraction(1000), "mega": Fraction(10**6)},
    **{
        "giga": Fraction(10**9),
        "tera": Fraction(10**12),
        "pico": Fraction(1, 10**12),
        "femto": Fraction(1, 10**15),
    },
}
# Symbol, long names, size in base units, exponents of the base units, and whether prefixes are used.
_TABLE: tuple[tuple[str, str, Fraction | int, dict[str, int], bool], ...] = (
    ("m", "meter metre", 1, {"m": 1}, True),
    ("g", "gram gramme", Fraction(1, 1000), {"kg": 1}, True),
    ("s", "second sec", 1, {"s": 1}, True),
    ("A", "ampere amp", 1, {"A": 1}, True),
    ("K", "kelvin", 1, {"K": 1}, True),
    ("mol", "mole", 1, {"mol": 1}, True),
    ("Hz", "hertz", 1, {"s": -1}, True),
    ("N", "newton", 1, {"kg": 1, "m": 1, "s": -2}, True),
    ("Pa", "pascal", 1, {"kg": 1, "m": -1, "s": -2}, True),
    ("J", "joule", 1, {"kg": 1, "m": 2, "s": -2}, True),
    ("W", "watt", 1, {"kg": 1, "m": 2, "s": -3}, True),
    ("C", "coulomb", 1, {"A": 1, "s": 1}, True),
    ("V", "volt", 1, {"kg": 1, "m": 2, "s": -3, "A": -1}, True),
    ("F", "farad", 1, {"kg": -1, "m": -2, "s": 4, "A": 2}, True),
    ("Ω", "ohm", 1, {"kg": 1, "m": 2, "s": -3, "A": -2}, True),
    ("T", "tesla", 1, {"kg": 1, "s": -2, "A": -1}, True),
    ("Wb", "weber", 1, {"kg": 1, "m": 2, "s": -2, "A": -1}, True),
    ("H", "henry", 1, {"kg": 1, "m": 2, "s": -2, "A": -2}, True),
    ("Bq", "becquerel", 1, {"s": -1}, True),
    ("eV", "electronvolt", Fraction("1.602176634e-19"), {"kg": 1, "m": 2, "s": -2}, True),
    ("L", "liter litre", Fraction(1, 1000), {"m": 3}, True),
    ("l", "", Fraction(1, 1000), {"m": 3}, True),
    ("M", "molar", 1000, {"mol": 1, "m": -3}, True),
    ("bar", "bar", 10**5, {"kg": 1, "m": -1, "s": -2}, True),
    ("atm", "atmosphere", 101325, {"kg": 1, "m": -1, "s": -2}, False),
    ("mmHg", "torr", Fraction(101325, 760), {"kg": 1, "m": -1, "s": -2}, False),
    ("cal", "calorie", Fraction("4.184"), {"kg": 1, "m": 2, "s": -2}, True),
    ("Cal", "", 4184, {"kg": 1, "m": 2, "s": -2}, False),
    ("Wh", "", 3600, {"kg": 1, "m": 2, "s": -2}, True),
    ("min", "minute", 60, {"s": 1}, False),
    ("h", "hour hr", 3600, {"s": 1}, False),
    ("day", "day", 86400, {"s": 1}, False),
    ("week", "week", 7 * 86400, {"s": 1}, False),
    ("month", "month", 1, {"month": 1}, False),
    ("yr", "year", 12, {"month": 1}, False),
    ("decade", "decade", 120, {"month": 1}, False),
    ("century", "century", 1200, {"month": 1}, False),
    ("in", "inch", Fraction("0.0254"), {"m": 1}, False),
    ("ft", "foot feet", Fraction("0.3048"), {"m": 1}, False),
    ("yd", "yard", Fraction("0.9144"), {"m": 1}, False),
    ("mi", "mile", Fraction("1609.344"), {"m": 1}, False),
    ("lb", "pound lbs", Fraction("0.45359237"), {"kg": 1}, False),
    ("oz", "ounce", Fraction("0.45359237") / 16, {"kg": 1}, False),
    ("t", "tonne ton", 1000, {"kg": 1}, False),
    ("ha", "hectare", 10**4, {"m": 2}, False),
    ("mph", "", Fraction("0.44704"), {"m": 1, "s": -1}, False),
    ("kph", "kmh", Fraction(1000, 3600), {"m": 1, "s": -1}, False),
    ("gal", "gallon", Fraction("0.003785411784"), {"m": 3}, False),
    ("qt", "quart", Fraction("0.003785411784") / 4, {"m": 3}, False),
    ("pt", "pint", Fraction("0.003785411784") / 8, {"m": 3}, False),
    ("°", "degree deg", 1, {"degree": 1}, False),
    ("rad", "radian", 1, {"radian": 1}, True),
    ("°C", "celsius", 1, {"celsius": 1}, False),
    ("°F", "fahrenheit", 1, {"fahrenheit": 1}, False),
    ("u", "amu dalton da", 1, {"amu": 1}, False),
    ("¤", "dollar usd", 1, {"dollar": 1}, False),
    ("¢", "cent", Fraction(1, 100), {"dollar": 1}, False),
    ("euro", "euro eur", 1, {"euro": 1}, False),
    ("gbp", "gbp", 1, {"pound sterling": 1}, False),
    ("byte", "byte", 8, {"bit": 1}, False),
    ("bit", "bit", 1, {"bit": 1}, False),
    ("rpm", "rpm", 1, {"rpm": 1}, False),
    ("angstrom", "angstrom", Fraction(1, 10**10), {"m": 1}, False),
    ("ly", "lightyear", 9460730472580800, {"m": 1}, False),
    ("AU", "au", 149597870700, {"m": 1}, False),
    ("acre", "acre", Fraction("4046.8564224"), {"m": 2}, False),
    ("knot", "knot", Fraction(1852, 3600), {"m": 1, "s": -1}, False),
    ("psi", "psi", Fraction("6894.757293168"), {"kg": 1, "m": -1, "s": -2}, False),
    ("dyn", "dyne", Fraction(1, 10**5), {"kg": 1, "m": 1, "s": -2}, False),
    ("erg", "erg", Fraction(1, 10**7), {"kg": 1, "m": 2, "s": -2}, False),
    ("G", "gauss", Fraction(1, 10**4), {"kg": 1, "s": -2, "A": -1}, False),
    ("S", "siemens", 1, {"kg": -1, "m": -2, "s": 3, "A": 2}, True),
    ("Gy", "gray", 1, {"m": 2, "s": -2}, True),
    ("Sv", "sievert", 1, {"m": 2, "s": -2}, True),
    ("hp", "horsepower", Fraction("745.69987158227022"), {"kg": 1, "m": 2, "s": -3}, False),
    ("BTU", "btu", Fraction("1055.05585262"), {"kg": 1, "m": 2, "s": -2}, False),
    ("cd", "candela", 1, {"cd": 1}, True),
    ("lm", "lumen", 1, {"cd": 1}, True),
    ("lx", "lux", 1, {"cd": 1, "m": -2}, True),
)
_PLURALS = {"feet": "foot", "inches": "inch", "henries": "henry", "centuries": "century"}


@dataclass(frozen=True)
class Unit:
    """The size of a unit in base units, and its dimension; as exponents of base units."""

    size: Fraction
    dimension: Dimension

    def power(self, exponent: Fraction) -> Unit:
        if exponent.denominator != 1:
            return Unit(self.size, tuple((name, value * exponent) for name, value in self.dimension))
        scaled = tuple((name, value * exponent) for name, value in self.dimension)
        return Unit(self.size ** int(exponent), scaled)

    def times(self, other: Unit) -> Unit:
        totals: dict[str, Fraction] = {}
        for name, value in (*self.dimension, *other.dimension):
            totals[name] = totals.get(name, Fraction(0)) + value
        return Unit(self.size * other.size, tuple(sorted((n, v) for n, v in totals.items() if v)))


def _known() -> tuple[dict[str, Unit], dict[str, Unit]]:
    symbols: dict[str, Unit] = {}
    names: dict[str, Unit] = {}
    for symbol, long_names, size, exponents, prefixed in _TABLE:
        unit = Unit(
            Fraction(size), tuple(sorted((name, Fraction(value)) for name, value in exponents.items()))
        )
        for name in long_names.split():
            names[name] = unit
            if prefixed:
                names.update(
                    {p + name: Unit(unit.size * f, unit.dimension) for p, f in _LONG_PREFIXES.items()}
                )
        if prefixed:
            for prefix, factor in _PREFIXES.items():
                symbols.setdefault(prefix + symbol, Unit(unit.size * factor, unit.dimension))
    for symbol, _, size, exponents, _ in _TABLE:
        # A unit's own symbol wins over a prefixed one: `min` is no milli-inch, `ft` no femto-tonne.
        symbols[symbol] = Unit(Fraction(size), tuple(sorted((n, Fraction(v)) for n, v in exponents.items())))
    return symbols, names


_SYMBOLS, _NAMES = _known()
_FACTOR = re.compile(
    r"(°\s*[CF]?|[A-Za-z¤¢µΩ]+)(?:\s*\^\s*([-+]?\d{1,2}(?:/[1-9]\d?)?)|([-+]?\d{1,2}(?:/[1-9]\d?)?))?"
)


@lru_cache(maxsize=4096)
def unit(text: str) -> Unit | None:
    """The unit that `text` names (`m/s^2`, `kg\\cdot m`, "square feet", "J/(mol K)"), or None if it names none."""
    text = text.replace('"', " ").replace("\\mu", "µ").replace("\\Omega", "Ω").replace("\\cdot", " ")
    text = text.replace("\\times", " ").replace("*", " ").replace("{", "").replace("}", "").strip(" .")
    text = re.sub(r"\\frac\s*", "", text)
    text = re.sub(r"\bdeg(?:ree)?s?\s+(?:([CF])\b|([Cc])elsius|([Ff])ahrenheit)", _temperature, text)
    text = re.sub(r"\b[Pp]er\b", "/", text)
    text = re.sub(
        r"\b([Ss]quare|[Ss]quared|[Cc]ubic|[Cc]ubed|sq|cu)\b\.?",
        lambda m: f"<{m.group(1)[:2].lower()}>",
        text,
    )
    text = re.sub(r"(\w+)\s+<(sq|cu)>(?=\s*(?:$|/))", _power_after, text)
    text = re.sub(r"<(sq|cu)>\s*(\w+)", lambda m: f"{m.group(2)}^{2 if m.group(1) == 'sq' else 3}", text)
    if not text:
        return None
    total = Unit(Fraction(1), ())
    sign = 1
    position = 0
    while position < len(text):
        if text[position] == "/":
            # Everything after the slash stands below it, as in print: J/mol K is J/(mol K).
            sign = -1
        if text[position] in "/ ()":
            position += 1
            continue
        match = _FACTOR.match(text, position)
        factor = _single(match.group(1).replace(" ", "")) if match else None
        if match is None or factor is None:
            return None
        total = total.times(factor.power(sign * Fraction(match.group(2) or match.group(3) or 1)))
        position = match.end()
    return total


def _temperature(match: re.Match[str]) -> str:
    return "°" + next(filter(None, match.groups())).upper()


def _power_after(match: re.Match[str]) -> str:
    return f"{match.group(1)}^{2 if match.group(2) == 'sq' else 3}"


def _single(word: str) -> Unit | None:
    if word in _SYMBOLS:
        return _SYMBOLS[word]
    lower = _PLURALS.get(word.casefold(), word.casefold())
    for form in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if len(form) > 2 and form in _NAMES:
            return _NAMES[form]
    return None
