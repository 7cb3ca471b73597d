"""Checks of numeric options, so that an unusable number is an error message and not a traceback later."""

from __future__ import annotations

import math

from megatron_prism.errors import ConfigError

# The largest value for 64-bit integers and random seeds.
LARGEST_INTEGER = 2**63 - 1


def above_zero(value: float, option: str) -> None:
    """Raise a ConfigError unless `value` is finite and greater than zero."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{option} {value:g}: must be a finite number greater than zero")


def whole_number(value: int, option: str, least: int) -> None:
    """Raise a ConfigError unless `value` is between `least` and the largest integer of 64 bits."""
    if not least <= value <= LARGEST_INTEGER:
        raise ConfigError(f"{option} {value}: must be a whole number from {least} to 2^63 - 1")
