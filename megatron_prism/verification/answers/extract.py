"""Finding the answer in a completion: the part after the thinking, and the last \\boxed{...} in it."""

from __future__ import annotations

import re

THINK_END = "</think>"
# How far from the end an unboxed final answer is looked for, in characters.
TAIL_CHARACTERS = 2000
# Format gate of the reward: reference responses open a think block, close it, and then say something.
THINK_FORMAT = re.compile(r"^\s*<think>.*?</think>\s*\S", re.DOTALL)
_BOX = "\\boxed"


def has_think_format(text: str) -> bool:
    """Whether `text` is `<think> ... </think>` followed by something (the paper's format reward)."""
    return THINK_FORMAT.match(text) is not None


def final_part(text: str) -> str:
    """What follows the last `</think>`, or the whole text when there is none."""
    return text.rpartition(THINK_END)[2]


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` with balanced braces, stripped; None if there is none or it is cut
    off.

    Escaped braces (`\\{`) do not count. One pass over the text, so a megabyte of braces is no trap.
    """
    start = text.rfind(_BOX)
    if start < 0:
        return None
    rest = text[start + len(_BOX) :].lstrip()
    if not rest.startswith("{"):
        return None
    depth = 0
    position = 0
    while position < len(rest):
        character = rest[position]
        if character == "\\":
            position += 2
            continue
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return rest[1:position].strip()
        position += 1
    return None


def tail(text: str) -> str:
    """The end of the final part, where an unboxed answer stands."""
    return final_part(text)[-TAIL_CHARACTERS:]
