"""Placeholders for paths that a real run needs and a plan does without, so that a laptop can show and plan a recipe.

A recipe asks for such a path with `needed`. While a graph is planned, `<KEY>` stands for a path that is absent, and the
graph cannot be run; otherwise the absence is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from megatron_prism.errors import ConfigError

# Parameters without a value of the graph that is being planned, with the message of a real run; None: a real run.
_absent: ContextVar[dict[str, str] | None] = ContextVar("absent", default=None)


@contextmanager
def planning() -> Iterator[dict[str, str]]:
    """Recipes called inside get placeholders; yields the parameters that a real run needs, with its messages."""
    absent: dict[str, str] = {}
    token = _absent.set(absent)
    try:
        yield absent
    finally:
        _absent.reset(token)


def needed(key: str, value: str, message: str) -> str:
    """`value`, the path given for parameter `key`, or a placeholder if it is empty and the graph is only planned.

    Raises:
        ConfigError: `message`, if the value is empty and the graph is to be run.
    """
    if value:
        return value
    absent = _absent.get()
    if absent is None:
        raise ConfigError(message)
    absent.setdefault(key, message)
    return f"<{key}>"


def is_placeholder(path: str | Path) -> bool:
    """Whether a path is a placeholder, or lies in one."""
    return any(part.startswith("<") and part.endswith(">") for part in Path(path).parts)


def resolved(path: str) -> str:
    """The absolute path, without links; a placeholder stays as it is."""
    return path if is_placeholder(path) else str(Path(path).resolve())
