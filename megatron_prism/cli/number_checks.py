"""Numbers typed as options: what is no number a verb can use is one line, not a traceback later."""

from __future__ import annotations

import math

from megatron_prism.errors import ConfigError

# What fits the random generators and processors' integers.
LARGEST_INTEGER = 2**63 - 1


def above_zero(value: float, option: str) -> None:
    """Raise a ConfigError unless `value` is finite and greater than zero."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{option} {value:g}: a number greater than zero is needed")


def whole_number(value: int, option: str, least: int) -> None:
    """Raise a ConfigError unless `value` lies between `least` and the largest integer of 64 bits."""
    if not least <= value <= LARGEST_INTEGER:
        raise ConfigError(f"{option} {value}: a whole number from {least} to 2^63 - 1 is needed")
