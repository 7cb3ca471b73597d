"""Equality of algebraic expressions: latex2sympy (math-verify's reader) reads them, exact evaluation compares them.

Both sides are evaluated to sixty digits, and with variables at several points, instead of math-verify's own comparison,
which rounds absolutely (1/2^99 would equal 1/2^98). Decimals become fractions before reading, so nothing is rounded.
What cannot be read or evaluated is equal only if it is written alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

from megatron_prism.verification.answers.braces import closing_brace
from megatron_prism.verification.answers.numbers import Number, ungrouped

T = TypeVar("T")

# Longer than any reference answer; longer text is not read.
LONGEST = 1_000
# Decimal digits of an exponent that is still computed.
LARGEST_EXPONENT = 6
# The reader's time grows with the depth of brackets.
MOST_BRACKETS = 40
LONGEST_SUM = 10_000
_DIGITS = 60
# Two values are equal if they agree to this many digits, relative to their size.
_AGREEMENT = 40
# Rational points, positive ones first. Each variable gets its own coordinate, not a multiple of one: y = 2x and y = 3x
# are proportional on a line through the origin. The last two are whole numbers, where floor and ceiling differ.
_POINTS = tuple(Fraction(*pair) for pair in ((37, 29), (53, 31), (7, 13), (211, 47), (-41, 23), (-5, 17)))
_WHOLE_POINTS = (3, 4)
_COMMAND_NAMES = (
    "frac sqrt binom times cdot pi sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp infty "
    "alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi psi omega kappa eta zeta xi chi Gamma Delta "
    "Theta Lambda Omega Phi Psi Sigma sum prod int lfloor rfloor lceil rceil max min gcd overline vec hat bar "
    "ell"
)
_COMMANDS = frozenset(_COMMAND_NAMES.split())
# What the reader takes for something else: "7 8" is a sum to it, 7_8 is 7, 7.8.9 a product, x^T is x, and 2^3^2
# has no meaning.
_MISREAD = re.compile(
    r"(?<!_)(?<!_\d)\d\s+\d|(?<![A-Za-z\\}\d])\d+\s*_|\d\.\d+\.\d|\^\s*\w\s*\^|\^\s*\{[^{}]*\}\s*\^"
    r"|\^\s*\{?\s*T\s*\}?(?![A-Za-z])"
)
_CHARACTERS = re.compile(r"[A-Za-z0-9+\-*/^_(){}\[\]|.,!\s=]*")
_FUNCTION_PRODUCT = re.compile(
    r"\\(ln|log|sin|cos|tan|cot|exp)(_\{?\w+\}?|\^\{?\d\}?)?\s*([A-Za-z]|\d+|\\(?!cdot|times)[a-z]+|\\frac\{[^{}]*\}\{[^{}]*\})\s*\\(cdot|times)"
)
_FUNCTION_POWER = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc|ln|log|sinh|cosh|tanh)\s*\^\s*\{?\s*([2-9])\s*\}?\s*\("
)


def same_expression(gold: str, answer: str) -> bool:
    """Whether two normalized expressions are equal wherever both are defined."""
    left, right = expression(gold), expression(answer)
    if left is None or right is None:
        return False
    if left == right:
        return True
    return attempted(lambda: _equal(left, right), otherwise=False)


def attempted(compute: Callable[[], T], otherwise: T) -> T:
    """The result of `compute`, or `otherwise` if it raises: sympy, its reader and ANTLR raise errors of many kinds for
    senseless input. A lack of memory is passed on to the pool."""
    try:
        return compute()
    except MemoryError:
        raise
    except Exception:
        return otherwise


def same_equation(gold: tuple[str, str], answer: tuple[str, str]) -> bool:
    """Whether two equations have the same solutions as polynomials: one is a constant multiple of the other."""
    sides = [found for side in (*gold, *answer) if (found := expression(side)) is not None]
    if len(sides) < 4:
        return False
    return attempted(lambda: _proportional(sides[0] - sides[1], sides[2] - sides[3]), otherwise=False)


def _proportional(first: Any, second: Any) -> bool:
    import sympy

    names = sorted((first.free_symbols | second.free_symbols), key=str)
    if first.free_symbols != second.free_symbols or not names:
        return False
    ratios = []
    for point in _assignments(names):
        top, bottom = _at(first, point), _at(second, point)
        if top is None or bottom is None or _is_zero(bottom) or _is_zero(top):
            continue
        ratios.append(top / bottom)
    return len(ratios) >= 3 and all(_agree(sympy.N(ratios[0], _DIGITS), each) for each in ratios[1:])


def rounds_to(exact_text: str, decimal: Number) -> bool:
    """Whether a decimal fraction is the exact value rounded or cut off at its last digit."""
    exact = expression(exact_text)
    if exact is None or exact.free_symbols:
        return False
    value = _at(exact, {})
    if value is None:
        return False
    import sympy

    written = sympy.Rational(decimal.value.numerator, decimal.value.denominator)
    unit = sympy.Rational(1, 10**decimal.places)
    cut = sympy.sign(value) * sympy.floor(abs(value) / unit) * unit
    return bool(abs(value - written) <= unit / 2 or written == cut)


def value_of(text: str) -> Any | None:
    """The value of a constant expression as a sympy number of sixty digits, or None; `\\infty` gives infinity."""
    found = expression(text)
    if found is None or found.free_symbols:
        return None
    return found if found.is_infinite else _at(found, {})


@lru_cache(maxsize=1024)
def expression(text: str) -> Any | None:
    """Normalized LaTeX as a sympy expression, or None if it is no algebra or has a part that would be dropped."""
    return (
        attempted(lambda: _parsed(text), otherwise=None) if len(text) <= LONGEST and readable(text) else None
    )


def _parsed(text: str) -> Any | None:
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    found = latex2sympy(
        _exact(text),
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    if isinstance(found, sympy.MatrixBase) or not isinstance(found, sympy.Expr) or _endless(found):
        return None
    found = found.xreplace({sympy.Symbol("i"): sympy.I, sympy.Symbol("e"): sympy.E})
    return found if found.has(sympy.I) else _real_roots(found)


def readable(text: str) -> bool:
    """Whether every sign and command is one that the reader understands; it silently drops others."""
    if re.search(r"\\(?![A-Za-z])", text) or text.count("\\binom") > 4 or text.count("!") > 6:
        return False
    if _MISREAD.search(text) or max(text.count(opening) for opening in "({[|") > MOST_BRACKETS:
        return False
    commands = re.findall(r"\\([A-Za-z]+)", text)
    plain = re.sub(r"\\[A-Za-z]+", " ", text)
    return (
        all(each in _COMMANDS for each in commands)
        and _CHARACTERS.fullmatch(plain.replace("%", "")) is not None
    )


@lru_cache(maxsize=1)
def prepare() -> None:
    """Import sympy (two seconds or more) and let the reader build its tables."""
    same_expression("\\sqrt{x}", "x^{1/2}")


def _exact(text: str) -> str:
    """Decimals as fractions, products written out, percent signs as hundredths."""
    text = ungrouped(text)
    text = re.sub(r"(?<![\w.])(\d*)\.(\d+)", _fraction, text)
    text = re.sub(r"(\d)\s*\.(?!\d)", r"\1", text)
    # `\\ln 2 \\cdot 3` is 3 ln 2 in print; the reader would take ln 6.
    text = _powers_of_functions(text)
    text = _FUNCTION_PRODUCT.sub(r"\\\1\2(\3) \\\4", text)
    text = text.replace("%", "\\cdot \\frac{1}{100}")
    text = re.sub(r"(?<=\d)\s*\(", r"\\cdot (", text)
    text = text.replace("*", "\\cdot ").replace("[", "(").replace("]", ")") if "\\sqrt[" not in text else text
    # A mixed number is a sum; latex2sympy would multiply.
    return re.sub(r"(?<![\w}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", r"(\1+\\frac{\2}{\3})", text)


def _powers_of_functions(text: str) -> str:
    """`\\cos^2(x)` as `(\\cos(x))^{2}`; the reader would lose the square."""
    while (match := _FUNCTION_POWER.search(text)) is not None:
        end = closing_brace(text, match.end() - 1)
        if end is None:
            return text
        inside = text[match.end() : end]
        text = f"{text[: match.start()]}(\\{match.group(1)}({inside}))^{{{match.group(2)}}}{text[end + 1 :]}"
    return text


def _fraction(match: re.Match[str]) -> str:
    whole, places = match.groups()
    return f"\\frac{{{int((whole or '0') + places)}}}{{{10 ** len(places)}}}"


def _equal(left: Any, right: Any) -> bool:
    import sympy

    names = sorted(left.free_symbols | right.free_symbols, key=str)
    imaginary = left.has(sympy.I) or right.has(sympy.I)
    compared = 0
    for point in _assignments(names) if names else [{}]:
        if names and not imaginary and not (_defined(left, point) and _defined(right, point)):
            continue
        first, second = _at(left, point), _at(right, point)
        if first is None or second is None:
            continue
        real = first.is_real and second.is_real
        if names and not imaginary and not real:
            # A logarithm or root of a negative number: one of them is not defined here as a real function.
            continue
        if not _agree(first, second):
            return False
        compared += 1
    if compared >= (2 if names else 1):
        return True
    return _simplifies_to_zero(left, right)


def _endless(found: Any) -> bool:
    """Whether evaluation would take longer than anybody waits: towers of powers, long sums, huge factorials."""
    import sympy

    for part in sympy.preorder_traversal(found):
        if isinstance(part, sympy.Pow) and part.exp.has(sympy.Pow):
            inner = [each for each in part.exp.atoms(sympy.Pow) if each is not part]
            if any(each.exp.has(sympy.Pow) or _huge(each) for each in inner):
                return True
        if isinstance(part, sympy.Sum | sympy.Product):
            for _, *ends in part.limits:
                if len(ends) == 2 and (ends[1] - ends[0]).is_number and ends[1] - ends[0] > LONGEST_SUM:
                    return True
        if isinstance(part, sympy.factorial) and (
            part.args[0].has(sympy.factorial) or (part.args[0].is_number and not part.args[0].is_Integer)
        ):
            return True
    return False


def _huge(power: Any) -> bool:
    """Whether a power of numbers is larger than a million."""
    if not power.is_number:
        return False
    base, exponent = abs(complex(power.base)), abs(complex(power.exp))
    return base > 1 and exponent * math.log10(base) > LARGEST_EXPONENT


def _assignments(names: list[Any]) -> list[dict[Any, Any]]:
    import sympy

    rational = [
        {
            name: sympy.Rational(
                point.numerator * (place + 2) + 3 * place**2 + 1, point.denominator + 2 * place
            )
            for place, name in enumerate(names)
        }
        for point in _POINTS
    ]
    return rational + [
        {name: sympy.Integer(start + 2 * place) for place, name in enumerate(names)}
        for start in _WHOLE_POINTS
    ]


def _defined(found: Any, point: dict[Any, Any]) -> bool:
    """Whether no even root or logarithm of a negative number is taken at a point."""
    import sympy

    for part in sympy.preorder_traversal(found):
        inner = None
        if isinstance(part, sympy.Pow) and part.exp.is_Rational and part.exp.q % 2 == 0:
            inner = part.base
        elif isinstance(part, sympy.log):
            inner = part.args[0]
        if inner is not None and inner.free_symbols:
            value = _at(inner, point)
            if value is None or not value.is_real or value < 0:
                return False
    return True


def _real_roots(found: Any) -> Any:
    """Odd roots of what may be negative as real roots, as schools write them; sympy takes the principal one."""
    import sympy

    def odd(part: Any) -> bool:
        return bool(
            part.is_Pow
            and part.exp.is_Rational
            and part.exp.q % 2
            and part.exp.q > 1
            and not part.base.is_positive
        )

    return found.replace(
        odd, lambda part: sympy.sign(part.base) ** part.exp.p * sympy.Abs(part.base) ** part.exp
    )


def _at(found: Any, point: dict[Any, Any]) -> Any | None:
    """The value of an expression at a point, or None if it has none (undefined, infinite, an unknown function)."""
    value = attempted(
        lambda: found.evalf(_DIGITS, subs=point) if point else found.evalf(_DIGITS), otherwise=None
    )
    if value is None or not value.is_number or value.is_finite is False or value.has(*_undefined()):
        return None
    real, imaginary = value.as_real_imag()
    if _is_zero(imaginary) or abs(imaginary) < abs(real) * 10**-_AGREEMENT:
        value = real
    return value


def _undefined() -> tuple[Any, ...]:
    import sympy

    return (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)


def _is_zero(value: Any) -> bool:
    # A Float without significant bits is what sympy gives for an exact zero that it cannot recognise.
    return bool(value == 0 or (value.is_Float and value._prec <= 2))


def _agree(first: Any, second: Any) -> bool:
    if _is_zero(first) or _is_zero(second):
        return _is_zero(first) and _is_zero(second)
    size = max(abs(first), abs(second))
    return bool(abs(first - second) <= size * 10**-_AGREEMENT)


def _simplifies_to_zero(left: Any, right: Any) -> bool:
    import sympy

    return attempted(lambda: bool(sympy.simplify(left - right) == 0), otherwise=False)
