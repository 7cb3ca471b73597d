"""Finding the answer in a completion: the part after the thinking, and the last \\boxed{...} in it."""

from __future__ import annotations

import re

THINK_END = "</think>"
# An unboxed answer is searched for in the last characters only.
TAIL_CHARACTERS = 2000
# The format that the reward requires: a closed think block, followed by an answer.
THINK_FORMAT = re.compile(r"^\s*<think>.*?</think>\s*\S", re.DOTALL)
_BOX = "\\boxed"


def has_think_format(text: str) -> bool:
    """Whether `text` is `<think> ... </think>` followed by something (the paper's format reward)."""
    return THINK_FORMAT.match(text) is not None


def final_part(text: str) -> str:
    """The text after the last `</think>`, or the whole text if there is none."""
    return text.rpartition(THINK_END)[2]


def last_boxed(text: str) -> str | None:
    """The stripped content of the last `\\boxed{...}`; None if there is none or its braces are not balanced.

    Escaped braces (`\\{`) do not count. The text is read once, so a megabyte of braces costs little.
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
    """The last characters of the final part, in which an unboxed answer is searched for."""
    return final_part(text)[-TAIL_CHARACTERS:]
