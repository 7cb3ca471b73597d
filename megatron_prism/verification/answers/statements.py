"""An answer that stands in no box: `<answer>4</answer>`, `#### 4`, "The answer is 4.", a heading, or the last formula.

Each rule is tried in this order, and a rule that finds nothing readable leaves the decision to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_prism.verification.answers.extract import without_end_token

# A denial stands directly before what it denies.
LONGEST_DOUBT = 80
# GSM8K's mark of the final answer.
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)$", re.MULTILINE)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HEADING = re.compile(
    r"^[ \t]*#{1,6}[ \t]*\**(?:final[ \t]+)?answer\**:?[ \t]*\n", re.IGNORECASE | re.MULTILINE
)
_STATED = re.compile(
    r"\b(?:answer|(?:final|the)[ \t]+result|^[ \t*]*(?:result|ans))\.?[ \t]*(?:\*{1,2}[ \t]*)?"
    r"(?:is|would be|must be|:|=)[ \t]*(?:\*{1,2})?:?"
    r"(?:[ \t]*\b(?:therefore|thus|then|indeed|simply|equal to)\b[ \t]*)*",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUDED = re.compile(
    r"(?:therefore|thus|hence|so)[ \t,]+(?:we[ \t]+(?:get|have|find)[ \t]+)?"
    r"([A-Za-z][ \t]*=[ \t]*[^\n.$]{1,40}(?:\.\d+)?)\.?\s*$",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\s*(?:not|n't|never)\b(?:[ \t]+[^\n]{1,40}?[ \t]+but[ \t]+)?", re.IGNORECASE)
# After an answer in the same sentence: a condition, a second candidate or a doubt.
_HEDGED = re.compile(
    r"\b(?:if|when|unless|or|but|might|could|maybe|wait|possibl[ey]|alternatively|either|except)\b|n't\b",
    re.IGNORECASE,
)
# Before or after a formula in its sentence: it is denied or only supposed.
_DENIED = re.compile(
    r"\b(?:not|never|suppose|assum(?:e|ing)|consider|let|if|wrong|incorrect|false|cannot|guess|unless|perhaps|maybe"
    r"|(?:may|might|could)\s+be)\b|n't\b|^\s*say\b",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^.!\n]*\?")
# Directly before a statement: "I don't think the", "Suppose that the", "Maybe the".
_DOUBTED = re.compile(
    r"(?:\b(?:not|never|cannot|suppose|assum(?:e|ing)|if|whether|maybe|perhaps|doubt|false|unlikely|wrong)|n't)\s+"
    r"(?:(?:think|believe|say|true|sure|certain|right|correct|to|be|that|if|whether|the|my|our|final|best)\s+)*$",
    re.IGNORECASE,
)
# In a later sentence: "No wait, $8$", "Or 8.", "Actually, it is 8".
_TAKEN_BACK = re.compile(
    r"\bno\W{1,3}wait\b|[.!?]\s+wait\b|[.!?]\s+(?:or|or\s+(?:maybe|perhaps)|actually|correction|sorry|rather)[,:]?\s+"
    r"(?:(?:it\s+is|it's|the\s+answer\s+is)\s+)?\$?-?\d",
    re.IGNORECASE,
)
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
    for candidate in _candidates(without_end_token(end)):
        stripped = candidate.strip().strip("*").strip()
        if re.search(r"\w|\\", stripped):
            return stripped
    return None


def is_doubted(before: str) -> bool:
    """Whether the text before a statement denies, supposes or doubts it: "I don't think the" (answer is 4)."""
    return _DOUBTED.search(before[-LONGEST_DOUBT:]) is not None


def _candidates(end: str) -> Iterator[str]:
    tagged = _TAGGED.findall(end)
    if tagged:
        yield re.sub(r"^\s*\$+|\$+\s*$", "", tagged[-1])
    hashes = _HASHES.findall(end)
    if hashes and not re.match(r"(?:final\s+)?answer\b", hashes[-1], re.IGNORECASE):
        yield hashes[-1].rstrip(". ")
    statements = [
        (match.end(), match.start()) for pattern in (_STATED, _HEADING) for match in pattern.finditer(end)
    ]
    if statements:
        # What is stated decides: if it is denied or hedged, no other formula of the text takes its place.
        after_statement, statement_start = max(statements)
        if is_doubted(end[:statement_start]):
            return
        yield from _after(end[after_statement:])
        if end[after_statement:].strip(" *:\n"):
            return
    concluded = _CONCLUDED.search(end)
    if concluded is not None:
        yield concluded.group(1)
    formulas = [
        (match.start(), match.end(), next(filter(None, match.groups())))
        for pattern in (_INLINE, _DISPLAY)
        for match in pattern.finditer(end)
    ]
    if formulas:
        start, stop, formula = max(formulas)
        before = re.split(r"[.!?]\s|\n", end[:start])[-1]
        after = re.split(r"[.!?](?:\s|$)|\n", end[stop:])[0]
        if not (_DENIED.search(before) or _DENIED.search(after) or _QUESTION.match(end, stop)):
            yield formula


def _after(rest: str) -> Iterator[str]:
    """Readings of what follows "the answer is": its formula if one comes first, else the rest of its sentence."""
    negated = _NEGATED.match(rest)
    if negated is not None:
        if "but" not in negated.group():
            return
        rest = rest[negated.end() :]
    opening = rest.lstrip(" \t\n*:")
    for pattern in (_DISPLAY, _INLINE):
        match = pattern.match(opening)
        if match is not None:
            following = opening[match.end() :].partition("\n")[0]
            if not _hedged(opening[match.end() :]):
                trailing = _SENTENCE_END.split(following, maxsplit=1)[0]
                yield next(filter(None, match.groups())) + _continuation(trailing)
            return
    stated = _SENTENCE_END.split(opening, maxsplit=1)[0]
    if not _hedged(opening[len(stated) :]):
        yield stated.rstrip(" .*`:")


def _hedged(following: str) -> bool:
    """Whether the rest of the sentence, or an "or" on the next line, takes the answer back or adds another."""
    sentence = re.split(r"[.!?](?:\s|$)|\n", following, maxsplit=1)[0]
    sentence = re.sub(r"\(?\bnot\b[^()]*\)?$", "", sentence)
    return (
        _HEDGED.search(sentence) is not None
        or _TAKEN_BACK.search(following) is not None
        or re.match(r"[^\n]{0,80}\n\s*(?:or|but)\b", following) is not None
    )


def _continuation(trailing: str) -> str:
    """A unit or a further candidate after the formula belongs to the answer: "$5$ or $6$", "$5$ cm"."""
    words = trailing.strip(" *")
    return f" {words}" if re.fullmatch(r"[\w\s$\\/^{}°%,+-]{1,40}", words) else ""
