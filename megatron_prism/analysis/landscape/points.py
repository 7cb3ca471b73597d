"""The points of a landscape: W(a, b) = W_base + a (W_mid - W_base) + b (W_rl - W_mid), and the paper's path and grid.

The path goes from the base to the mid-trained model (a from 0 to 1) and on to the model of reinforcement learning (b
from 0 to 1). The grid is centred at the mid-trained model: alpha is the step towards RL, beta the step back to the
base, so that a = 1 - beta and b = alpha. Coordinates are fractions, because two points that are meant to be one must be
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.merging.decimals import exact_number

# The paper's figure: seven points to the mid-trained model and four on to RL; a grid of five by five.
PATH_A = ("0", "1/6", "1/3", "1/2", "2/3", "5/6", "1")
PATH_B = ("1/4", "1/2", "3/4", "1")
GRID = ("-3/10", "1/10", "1/2", "9/10", "13/10")
# Models far beyond the given ones are noise; a larger number is a typing error.
LARGEST = 10


@dataclass(frozen=True, order=True)
class Point:
    """One model of the plane; `b` is 0 if there are only two models."""

    a: Fraction
    b: Fraction = Fraction(0)

    @property
    def name(self) -> str:
        """As the name of a folder, such as 'a0.5_b0' or 'a1over6_b-0.3'; different points have different names."""
        return f"a{_text(self.a)}_b{_text(self.b)}"

    def weights(self, models: int) -> list[Fraction]:
        """The weights of base, mid-trained and RL model, or of the base and the one other; they sum to 1."""
        if models == 2:
            return [1 - self.a, self.a]
        return [1 - self.a, self.a - self.b, self.b]

    def given(self, models: int) -> int | None:
        """Which of the given models this point is, if it is one of them."""
        weights = self.weights(models)
        return weights.index(Fraction(1)) if sorted(weights)[:-1] == [0] * (models - 1) else None


def coordinates(values: Sequence[Any], key: str) -> list[str]:
    """Numbers, or text such as '1/6', in one form of writing; the order is kept.

    Raises:
        ConfigError: naming `key`, for what is no number, is too far away, or occurs twice.
    """
    found = [exact_number(value, key) for value in values]
    for given, value in zip(values, found, strict=True):
        if abs(value) > LARGEST:
            raise ConfigError(
                f"{key}: {given} is beyond {LARGEST} times the change between two models; use numbers between "
                f"-{LARGEST} and {LARGEST}"
            )
    if len(set(found)) < len(found):
        raise ConfigError(f"{key}: {', '.join(map(str, values))}: a number occurs twice")
    return [str(value) for value in found]


def path_points(path_a: Sequence[str], path_b: Sequence[str]) -> list[Point]:
    """The points of the path in order: (a, 0) for each a, then (1, b) for each b."""
    along = [Point(Fraction(value)) for value in sorted(path_a, key=Fraction)]
    return along + [Point(Fraction(1), Fraction(value)) for value in sorted(path_b, key=Fraction)]


def grid_points(alphas: Sequence[str], betas: Sequence[str]) -> list[list[Point]]:
    """The points of the grid, `[beta][alpha]`."""
    return [[Point(1 - Fraction(beta), Fraction(alpha)) for alpha in alphas] for beta in betas]


def _text(value: Fraction) -> str:
    """As a decimal if it is one, exactly; otherwise as a fraction without a slash."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest > 1:
        return f"{value.numerator}over{value.denominator}"
    digits = value.denominator.bit_length()
    scaled = abs(value.numerator) * 10**digits // value.denominator
    whole, part = divmod(scaled, 10**digits)
    written = f"{whole}.{part:0{digits}d}".rstrip("0").rstrip(".")
    return f"-{written}" if value < 0 else written
