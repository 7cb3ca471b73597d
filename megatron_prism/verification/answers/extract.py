"""Where the answer stands in a completion: after the thinking, and in which box.

One rule for boxes: the last complete box counts. Boxes that only commas, "and" or "or" separate are one answer with
several parts. A box that is never closed, or has no content to read, is no box; an empty box is an empty answer.
"""

from __future__ import annotations

import re

from megatron_prism.verification.answers.braces import closing_braces

THINK_START, THINK_END = "<think>", "</think>"
# An unboxed answer is searched for in the last characters only.
TAIL_CHARACTERS = 2000
# Longer text between two boxes makes them two answers.
LONGEST_JOINT = 80
# The format that the reward requires: a closed think block, followed by an answer.
THINK_FORMAT = re.compile(r"^\s*<think>.*?</think>\s*\S", re.DOTALL)
# `\b` and `\f` in a JSON or Python string are escapes, so a sampled `\boxed` can arrive as these characters.
_BOX = re.compile(r"(?:\\|\x08(?=oxed)|\x0c(?=box))(?:framebox|b?f?(?:oxed|box))(?![A-Za-z])\s*")
_UNBRACED = re.compile(
    r"(\\d?t?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)|\\sqrt\s*(?:\{[^{}]*\}|\w)|\\[A-Za-z]+(?![A-Za-z{])"
    r"|-?\d+(?:,\d{3})*(?:\.\d+)?|[A-Za-z])"
)
_END_TOKENS = re.compile(r"(?:<\|\w{1,30}\|>|</s>|<eos>|\s)*$")
# What may stand between boxes that are parts of one answer.
_JOINT = re.compile(
    r"[\s$.]*(?:\([^()]{0,60}\)[\s$.]*)?(?:,|;|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b|,\s*and\b|,\s*or\b)[\s$]*(?:[A-Za-z]\s*=\s*)?"
)


def has_think_format(text: str) -> bool:
    """Whether `text` is `<think> ... </think>` followed by something (the paper's format reward)."""
    return THINK_FORMAT.match(text) is not None


def final_part(text: str) -> str:
    """The text after the last `</think>`, up to a later `<think>`: thinking that was never closed holds no answer.

    A text without these marks is returned whole.
    """
    return text.rpartition(THINK_END)[2].partition(THINK_START)[0]


def tail(text: str) -> str:
    """The last characters of the final part, in which an unboxed answer is searched for."""
    return final_part(text)[-TAIL_CHARACTERS:]


def without_end_token(text: str) -> str:
    """Without the end tokens that a sampler may leave after the answer: `</s>`, `<|eot_id|>`."""
    return _END_TOKENS.sub("", text)


def boxed_answer(text: str) -> str | None:
    """The content of the last complete box, or of the last boxes if they are parts of one answer, joined by commas.

    Returns:
        None if there is no complete box. `\\boxed 4`, `\\boxed{4}`, `\\fbox{4}` and `\\\\boxed{4}` are boxes.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    # From the last box backwards.
    parts = [boxes[-1]]
    for earlier in reversed(boxes[:-1]):
        if parts[-1][0] - earlier[1] > LONGEST_JOINT or not _JOINT.fullmatch(text, earlier[1], parts[-1][0]):
            break
        parts.append(earlier)
    return ", ".join(content for _, _, content in reversed(parts))


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and stripped content of the complete boxes that are not inside another box."""
    found: list[tuple[int, int, str]] = []
    ends = closing_braces(text) if _BOX.search(text) else {}
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        position = match.end()
        if text[position : position + 1] == "{":
            end = ends.get(position)
            if end is None:
                continue
            found.append((match.start(), end + 1, text[position + 1 : end].strip()))
            position = end + 1
        elif bare := _UNBRACED.match(text, position):
            found.append((match.start(), bare.end(), bare.group()))
            position = bare.end()
    return found
