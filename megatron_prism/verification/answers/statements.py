"""An answer that stands in no box: `<answer>4</answer>`, `#### 4`, "The answer is 4.", a heading, or the last formula.

Each rule is tried in this order, and a rule that finds nothing readable leaves the decision to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# GSM8K's mark of the final answer.
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)$", re.MULTILINE)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HEADING = re.compile(
    r"^[ \t]*#{1,6}[ \t]*\**(?:final[ \t]+)?answer\**:?[ \t]*\n", re.IGNORECASE | re.MULTILINE
)
_STATED = re.compile(r"\banswer[ \t]*(?:\*{1,2}[ \t]*)?(?:is|:|=)[ \t]*(?:\*{1,2})?:?", re.IGNORECASE)
_NEGATED = re.compile(r"\s*(?:not|n't|never)\b", re.IGNORECASE)
_INLINE = re.compile(r"(?<![\\$])\$(?!\$)([^$\n]+?)(?<!\\)\$(?!\$)|\\\((.+?)\\\)")
_DISPLAY = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\\\[(.+?)\\\]|\\begin\{(?:equation|align|gather)\*?\}(.+?)\\end\{(?:equation|align|gather)\*?\}",
    re.DOTALL,
)
_SENTENCE_END = re.compile(
    r"[.!](?:\s|$)|\n|,?\s+(?:because|since|as|which|so|but|where|when|giving|making|meaning|thus|hence|therefore)\b"
    r"|,?\s+\(?(?:and\s+)?not\b"
    r"|,\s+(?:in|for|with|that|after|if|using)\b",
    re.IGNORECASE,
)


def stated_answer(end: str) -> str | None:
    """The answer that the end of a completion states, or None."""
    for candidate in _candidates(end):
        stripped = candidate.strip().strip("*").strip()
        if re.search(r"\w|\\", stripped):
            return stripped
    return None


def _candidates(end: str) -> Iterator[str]:
    tagged = _TAGGED.findall(end)
    if tagged:
        yield re.sub(r"^\s*\$+|\$+\s*$", "", tagged[-1])
    hashes = _HASHES.findall(end)
    if hashes and not re.match(r"(?:final\s+)?answer\b", hashes[-1], re.IGNORECASE):
        yield hashes[-1].rstrip(". ")
    starts = [match.end() for pattern in (_STATED, _HEADING) for match in pattern.finditer(end)]
    if starts:
        yield from _after(end[max(starts) :])
    formulas = [
        (match.start(), next(filter(None, match.groups())))
        for pattern in (_INLINE, _DISPLAY)
        for match in pattern.finditer(end)
    ]
    if formulas:
        yield max(formulas)[1]


def _after(rest: str) -> Iterator[str]:
    """Readings of what follows "the answer is": its formula if one comes first, else the rest of its sentence."""
    if _NEGATED.match(rest):
        return
    opening = rest.lstrip(" \t\n*:")
    for pattern in (_DISPLAY, _INLINE):
        match = pattern.match(opening)
        if match is not None:
            following = opening[match.end() :].partition("\n")[0]
            trailing = _SENTENCE_END.split(following, maxsplit=1)[0]
            yield next(filter(None, match.groups())) + _continuation(trailing)
            return
    yield _SENTENCE_END.split(opening, maxsplit=1)[0].rstrip(" .*`:")


def _continuation(trailing: str) -> str:
    """A unit or a further candidate after the formula belongs to the answer: "$5$ or $6$", "$5$ cm"."""
    words = trailing.strip(" *")
    return f" {words}" if re.fullmatch(r"[\w\s$\\/^{}°%,+-]{1,40}", words) else ""
