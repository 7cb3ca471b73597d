"""One line of `prism doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check of this machine.

    Attributes:
        name: what was looked for.
        found: whether it is there and works.
        detail: what was found, or what is wrong.
        unlocks: what it is needed for.
        remedy: what to do if it is missing and needed; a full sentence.
        vital: whether nothing can run without it; `prism doctor --health` fails then.
    """

    name: str
    found: bool
    detail: str
    unlocks: str
    remedy: str = ""
    vital: bool = False
