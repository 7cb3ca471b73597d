"""Brackets and braces in LaTeX: where a group ends, and splitting a text outside all groups."""

from __future__ import annotations

_CLOSING = {"{": "}", "(": ")", "[": "]"}


def closing_brace(text: str, start: int) -> int | None:
    """The index of the bracket that closes the one at `start`, or None if it is never closed.

    Only brackets of the same kind are counted, so `[0, 1)` inside braces does not disturb them. Escaped braces (`\\{`)
    do not count. The text is read once, so a megabyte of braces costs little.
    """
    opening, closing = text[start], _CLOSING[text[start]]
    depth = 0
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\" and opening == "{":
            position += 2
            continue
        if character == opening:
            depth += 1
        elif character == closing:
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def closing_braces(text: str) -> dict[int, int]:
    """For each `{` that is closed, the index of its `}`; escaped braces do not count. The text is read once."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    escaped = False
    for position, character in enumerate(text):
        if escaped or character == "\\":
            escaped = not escaped
        elif character == "{":
            opened.append(position)
        elif character == "}" and opened:
            pairs[opened.pop()] = position
    return pairs


def split_outside(text: str, separators: tuple[str, ...]) -> list[str]:
    """The parts of `text` between separators that stand outside of all brackets, stripped.

    An interval such as `[0, 1)` has unequal brackets, so any opening bracket raises the depth and any closing one
    lowers it.
    """
    parts: list[str] = []
    depth = 0
    first = position = 0
    while position < len(text):
        if text[position] in "{([" or text.startswith(("\\langle", "\\lfloor", "\\lceil"), position):
            depth += 1
        elif text[position] in "})]" or text.startswith(("\\rangle", "\\rfloor", "\\rceil"), position):
            depth -= 1
        elif depth <= 0:
            found = next((each for each in separators if text.startswith(each, position)), None)
            if found is not None:
                parts.append(text[first:position].strip())
                position += len(found)
                first = position
                continue
        position += 1
    return [*parts, text[first:].strip()]


def balanced(text: str) -> bool:
    """Whether every brace `{` is closed and none is closed too often (escaped braces do not count)."""
    depth = 0
    position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth < 0:
            return False
        position += 1
    return depth == 0
