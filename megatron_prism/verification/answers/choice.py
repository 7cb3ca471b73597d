"""Grading a multiple-choice answer: one letter."""

from __future__ import annotations

import re

from megatron_prism.verification.answers.extract import boxed_answer, final_part, tail
from megatron_prism.verification.answers.notation import normalize

# A box with a letter and the text of its option is not longer.
LONGEST_OPTION = 2000
_WORD = r"(?:option|choice|answer|letter)"
# The letter, alone or followed by the text of the option; a second letter after a separator is a second candidate.
_LETTER = re.compile(
    rf"(?:the\s+)?(?:correct\s+)?(?:{_WORD}\s*(?:is|:)?\s*)?[(\[]?\s*([A-Za-z])\s*(?:[)\]]|[.:,]|\s[-]|$)\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
# What follows the letter names a second one: "(B)(C)", ", D", "or D", "5 or D. 6". "Both A and B" is an option's text.
_SECOND = re.compile(
    r"(?:and\b|or\b|[,/&])?\s*[(\[]?[A-Z](?:[)\].:]|\s*$|\s*[,/&]|\s+(?:or|and)\b)|.*\b(?:or|and)\s+[(\[]?[A-Z][)\].:]",
    re.DOTALL,
)
_IS = r"(?:\s+(?:is|would\s+be|must\s+be|should\s+be|option|choice|letter))*\s*[-:=]?\s*"
_STATED = re.compile(
    rf"(?:\b(?i:(?:final\s+)?answer|(?:correct|best|right)\s+{_WORD}|(?:pick|choose|select|go\s+with)(?=\s))|答案)"
    rf"(?i:{_IS}|(?:是|为)\s*)(?i:(?:option|choice)\s+)?[*_(\[\s\"$]*"
    r"([A-Z](?![A-Za-z'])|[a-z](?=[\s*_)\]\"$]*(?:\.|$|\n)))",
)
_NAMED_RIGHT = re.compile(
    r"(?:\b(?i:option|choice|answer)\s+[(\[]?|[(\[])([A-Z])[)\]]?[*_]*\s+(?:is|must\s+be)\s+(?:the\s+)?"
    r"(?:right|correct|answer|true|best)"
)
_PARENTHESISED = re.compile(r"\(([A-Z])\)")
# A further letter after the stated one: "A/B/C", "A or B".
_ANOTHER = re.compile(r"[)\]*_]*\s*(?:[/,&]|\bor\b|\band\b)\s*[(\[]?[A-Z](?![A-Za-z])")
_OPTION_LINE = re.compile(r"[*_(\[\s]*([A-Z])[)\]][*_]*[.:]?\s+\S.*|[*_\s]*([A-Z])[.:][*_]*\s+\S.*")
_ALONE = re.compile(r"[*_(\[\s$]*([A-Z])[)\].:*_\s$]*")


def extract_choice(completion: str) -> str | None:
    """The letter of the last box, else the one that the text states as its answer, else the only one in brackets.

    Returns:
        A capital letter, or None: no letter, or several without a statement which one is meant.
    """
    boxed = boxed_answer(final_part(completion))
    if boxed is not None and (not boxed or _names_letters(boxed)):
        return choice_letter(boxed)
    end = re.sub(r"\*\*|\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", tail(completion))
    stated = [*_STATED.finditer(end), *_NAMED_RIGHT.finditer(end)]
    tagged = re.findall(r"<answer>\s*(.*?)\s*</answer>", end, re.DOTALL | re.IGNORECASE)
    if tagged:
        return choice_letter(tagged[-1])
    if stated:
        last = max(stated, key=lambda match: match.start())
        return None if _ANOTHER.match(end, last.end()) else last.group(1).upper()
    lines = [line for line in end.split("\n") if line.strip()]
    alone = _ALONE.fullmatch(lines[-1]) if lines else None
    if alone is not None:
        return alone.group(1)
    option = _OPTION_LINE.fullmatch(lines[0]) if len(lines) == 1 else None
    if (
        option is not None
        and _SECOND.match(lines[0][max(option.end(1), option.end(2)) + 1 :].strip()) is None
    ):
        return option.group(1) or option.group(2)
    found = set(_PARENTHESISED.findall(end))
    return found.pop() if len(found) == 1 else None


def choice_letter(text: str) -> str | None:
    """The letter that a box or a reference answer names: `C`, `(C)`, `C.`, `\\text{C}`, "Option C", `C: 5 m`."""
    match = _LETTER.fullmatch(_plain(text))
    if match is None or _SECOND.match(match.group(2)):
        return None
    return match.group(1).upper()


def _names_letters(boxed: str) -> bool:
    """Whether a box is about letters at all: a formula or a word in a box is not the answer to a choice."""
    return _LETTER.fullmatch(_plain(boxed)) is not None or _SECOND.match(_plain(boxed)) is not None


def _plain(text: str) -> str:
    if len(text) > LONGEST_OPTION:
        return ""
    return " ".join(normalize(text).replace('"', " ").split()).strip()
