"""An optimizer step that may be refused when its gradient norm is known, before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Refused(Exception):
    """Ends upstream's step between the norm of the gradients and the update."""


def step_if(optimizer: Any, accept: Callable[[float], bool]) -> float:
    """Upstream's step, unless `accept(norm)` is false; returns the norm of the gradients.

    `ChainedOptimizer.step` (optimizer.py:1308) prepares the gradients, asks `get_grad_norm`, clips, and updates.
    Weights, moments and step counts change only in the last part. The next step clears the gradients anyway.
    """
    honest = optimizer.get_grad_norm
    norm = 0.0

    def checked() -> Any:
        nonlocal norm
        found = honest()
        norm = float(found)
        if not accept(norm):
            raise _Refused
        return found

    optimizer.get_grad_norm = checked
    try:
        optimizer.step()
    except _Refused:
        pass
    finally:
        del optimizer.get_grad_norm
    return norm
