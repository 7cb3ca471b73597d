"""How the tables and figures of all verbs write names and numbers, so that one thing looks alike everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_prism.analysis.figures import PALETTE
from megatron_prism.models.components import COMPONENTS

# Of a number that is not defined.
DASH = "–"
COLOURS = dict(zip(COMPONENTS, PALETTE, strict=False))


def part_name(name: str) -> str:
    """'attention.q' as it is in documents; 'norm' for 'norm.norm', a component with one part."""
    component, _, part = name.partition(".")
    return component if part == component else name


def delta(value: float | None) -> str:
    """A relative change: 0.0123, or 1.2e-05 if it is small."""
    if value is None:
        return DASH
    return f"{value:.4f}" if value >= 1e-3 or value == 0 else f"{value:.1e}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign: the column's name has it."""
    return DASH if share is None else f"{100 * share:.{digits}f}"


def fraction(value: float | None, digits: int = 3) -> str:
    """A number between -1 and 1, such as a cosine or a Jaccard index."""
    return DASH if value is None else f"{value:.{digits}f}"


def rate(estimate: Mapping[str, float]) -> str:
    """A pass rate with its interval, in percent: '33.5 (27.3 to 40.3)'."""
    return f"{percent(estimate['value'])} ({percent(estimate['low'])} to {percent(estimate['high'])})"
