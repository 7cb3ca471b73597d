"""Functions without matrix products, of a few passes over memory each, and `torch.compile` for them.

A GPU spends as long on an unfused chain of such passes as on a matrix product. Each chain is one function here, with a
backward pass of its own that keeps only the inputs, so that `compile` can turn it into one kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
_enabled = False


def use_compiled(enabled: bool) -> None:
    """Compile the functions marked `pointwise` at their next calls, in this process; False: run them as written."""
    global _enabled
    _enabled = enabled


def pointwise(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that `use_compiled` applies to."""
    compiled: Any = None

    @wraps(function)
    def call(*inputs: P.args, **keywords: P.kwargs) -> R:
        nonlocal compiled
        if not _enabled:
            return function(*inputs, **keywords)
        if compiled is None:
            # One kernel per shape: the rows of a training run all have the same.
            compiled = torch.compile(function, dynamic=False)
        result: R = compiled(*inputs, **keywords)
        return result

    return call
