"""Short names for models in tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def labels(paths: Sequence[str | Path]) -> list[str]:
    """For each path its shortest ending of whole parts that no other path has.

    'runs/a/base' and 'runs/b/base' become 'a/base' and 'b/base'; a link keeps the name that the user gave.
    """
    parts = [Path(path).absolute().parts for path in paths]
    found = []
    for mine in parts:
        others = [theirs for theirs in parts if theirs is not mine]
        length = 1
        while length < len(mine) and any(theirs[-length:] == mine[-length:] for theirs in others):
            length += 1
        found.append("/".join(mine[-length:]).replace("//", "/"))
    return found
