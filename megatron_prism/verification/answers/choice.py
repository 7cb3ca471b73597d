"""Grading a multiple-choice answer: one letter, in a box or stated in words.

A letter counts only if it is used as the letter of an option: "I don't know", "E = mc^2" and "A-dependent" name none. A
second letter beside it, or a denial, makes it no answer.
"""

from __future__ import annotations

import re

from megatron_prism.verification.answers.extract import boxed_answer, final_part, tail, without_end_token
from megatron_prism.verification.answers.notation import normalize
from megatron_prism.verification.answers.statements import is_doubted

# A box with a letter and the text of its option is not longer.
LONGEST_OPTION = 2000
_WORD = r"(?:option|choice|answer|letter|statement)"
# The letter, alone or followed by the text of the option.
_LETTER = re.compile(
    rf"(?:the )?(?:correct )?(?:{_WORD} ?(?:is|:)? ?)?[(\[]? ?([A-Za-z]) ?(?:[)\]]|[.:,]| [-]|$) ?(.*)",
    re.IGNORECASE | re.DOTALL,
)
_ROMAN = re.compile(r"(?:I{1,3}|IV|V)(?:,? (?:and|or) (?:I{1,3}|IV|V)|, (?:I{1,3}|IV|V))+\b")
# What follows the letter names a second one: "(B)(C)", ", d", "or D", "5 or D. 6". "Both A and B" is an option's text.
_SECOND = re.compile(
    r"(?:and\b|or\b|[,/&])? ?[(\[]?[A-Z](?:[)\].:]| ?$| ?[,/&]| (?:or|and)\b)"
    r"|(?:(?:and|or) |[,/&] ?)?[(\[]?[a-z](?:[)\]:]| ?$| ?[,/&])"
    r"|.{0,200}\b(?:or|and) [(\[]?[A-Z][)\].:]|.{0,200}; ?[a-zA-Z] ?:",
    re.DOTALL,
)
# "is wrong", "cannot be", "no", "not this", "No wait"; but "False", "No" and "No change" are texts of options.
_DENIED = re.compile(
    r"(?:(?:is|was)\s+(?:not|never|false|wrong|incorrect|excluded|eliminated|rejected|ruled\s+out)\b|(?:is|was|ca)n't\b"
    r"|cannot\s+be\b|[Nn]o\W{1,3}wait\b|no\W*$|[Nn]ot\W*$|(?:(?i:wrong|incorrect)|never|false)\W*$"
    r"|[Nn]ot\s+(?:this|that|it|one|correct|right|true|[A-Z])\W*$)"
)
_OPENING = r"[*_(\[\s\"'$]*"
_FILLERS = r"(?:\s+(?:indeed|therefore|thus|then|clearly|simply|option|choice|letter|number))*"
_LETTER_STATED = r"(?P<letter>[A-Z](?![A-Za-z'])|[a-z](?=[\s*_)\]\"'$]*(?:\.|$|\n)))"
_STATED = (
    # "The answer is C", "Answer: C", "the best choice would be (C)", "answer - C", {"answer": "C"}
    re.compile(
        rf"\b(?i:(?:final\s+)?(?:answer|ans|choice)|(?:correct|best|right)\s+{_WORD})\b\"?"
        rf"(?i:'s\b|\s+(?:is|would\s+be|must\s+be|should\s+be|option|choice|letter))*(?i:{_FILLERS})\s*[-:=.]?"
        rf"(?i:\s*(?:option|choice)\b)?(?P<not>\s+not\b)?{_OPENING}{_LETTER_STATED}"
    ),
    re.compile(
        rf"(?i:\b(?:pick|choose|select|go\s+with))\s+(?i:(?:option|choice)\s+)?(?P<not>not\b)?{_OPENING}{_LETTER_STATED}"
    ),
    re.compile(
        rf"(?i:\b(?:it's|it\s+is|must\s+be|indeed))\s+(?i:(?:option|choice)\s+)?(?P<not>not\b)?{_OPENING}{_LETTER_STATED}"
    ),
    re.compile(rf"答案(?:是|为|:|:)*(?P<not>不)?{_OPENING}{_LETTER_STATED}"),
    re.compile(rf"\b(?i:not)\s+[(\[]?[A-Z][)\]]?,?\s+but(?P<not>\s+not)?\s+{_OPENING}{_LETTER_STATED}"),
)
_NAMED_RIGHT = re.compile(
    r"(?:\b(?i:option|choice|answer)\s+[(\[]?|[(\[]|(?:^|(?<=[.,;:]\s)|(?<=\b[Ss]o\s)|(?<=\b[Tt]hus\s)|(?<=\b[Hh]ence\s)))"
    r"(?P<letter>[A-Z])[)\]]?[*_]*\s+(?:is|must\s+be)\s+(?:the\s+)?(?:right|correct|answer|true|best)\b",
    re.MULTILINE,
)
# After a letter that is an option's: the end, punctuation, an explanation; not "-dependent", " = 5" or " priori".
_ENDED = re.compile(
    r"[)\]\"'*_$}\s]*(?:$|\n|[.,;:!](?=\s|$)|\(|\s-\s|\)|\s(?i:because|since|as|which|not|but|rather|is)\b)"
)
# A second letter: ", B", "/B", "or maybe B", ". Or B", "; B.", and "A. B." or a line with only a letter.
_ANOTHER = re.compile(
    r"[)\]\"'*_$\s]*(?:"
    r"(?:[/,&(]|[.;]?\s*\b(?i:or|and)\b)\s*(?i:(?:or|and|maybe|perhaps|possibly|also|option)\s+)*[(\[]?(?P<joined>[A-Z])(?![A-Za-z'])"
    r"|(?:;\s*|\.[ \t]+|\.?\s*\n\s*)[(\[]?(?P<listed>[A-Z])(?:[.)\]][ \t]*(?=[A-Z]\b|\n|$)|[ \t]*(?:\n|$)))"
)
_REJECTED = re.compile(r"[)\]\"'*_$\s]*(?i:is|are)\s+(?i:wrong|incorrect|not|false|never)")
_TAKEN_BACK = re.compile(
    r"\b(?i:wait)\b|\b(?i:actually|correction|sorry|rather)[,:]?\s+(?i:(?:it's|it\s+is|the\s+answer\s+is)\s+)?"
    r"[(\[]?[A-Z](?=[)\].,;!]|\s*$)"
)
# In the clause before a letter in brackets, and directly after it.
_RULED_OUT = re.compile(
    r"\b(?:not|never|cannot|wrong|incorrect|false|unlikely|(?:rul|exclud|eliminat|reject|discard)(?:e|es|ed|ing)?)\b|n't\b",
    re.IGNORECASE,
)
_RULED_OUT_AFTER = re.compile(
    r"[*_\s]*(?:(?:is|was|can|could|does|do|has|must|should)\s*)?(?:been\s+|be\s+)?"
    r"(?:not\b|n't\b|never\b|cannot\b|wrong\b|incorrect\b|false\b|unlikely\b|ruled\b|excluded\b|eliminated\b|rejected\b)",
    re.IGNORECASE,
)
# A statement of an answer whose letter was not accepted: then no letter in brackets replaces it.
_STATEMENT = re.compile(
    r"\b(?:answer|correct\s+(?:option|choice))\b.{0,20}\bnot\b", re.IGNORECASE | re.DOTALL
)
_PARENTHESISED = re.compile(r"\(([A-Z])\)")
_OPTION_LINE = re.compile(r"[*_(\[\s]*([A-Z])[)\]][*_]*[.:]?\s+(\S.*)|[*_\s]*([A-Z])[.:][*_]*\s+(\S.*)")
_ALONE = re.compile(r"(?:[Oo]ption\s+|[Cc]hoice\s+)?[*_(\[\s$]*([A-Z])[)\].:*_\s$]*")
_LOOKS = re.compile(r"\*\*|`|\\[()]|\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def extract_choice(completion: str) -> str | None:
    """The letter of the last box, else the one that the text states as its answer, else the only one in brackets.

    Returns:
        A capital letter, or None: no letter, a denied one, or several without a statement which one is meant.
    """
    boxed = boxed_answer(final_part(completion))
    if boxed is not None and (not boxed or _names_letters(boxed)):
        return choice_letter(boxed)
    end = _LOOKS.sub(r"\1", without_end_token(tail(completion)))
    tagged = re.findall(r"<answer>\s*(.*?)\s*</answer>", end, re.DOTALL | re.IGNORECASE)
    if tagged:
        return choice_letter(tagged[-1])
    stated = sorted(
        (match for pattern in (*_STATED, _NAMED_RIGHT) for match in pattern.finditer(end)),
        key=lambda match: match.start("letter"),
    )
    if stated:
        last = stated[-1]
        return last.group("letter").upper() if _is_option(last, end) else None
    lines = [line for line in end.split("\n") if line.strip()]
    alone = _ALONE.fullmatch(lines[-1]) if lines else None
    if alone is not None:
        above = _ALONE.fullmatch(lines[-2]) if len(lines) > 1 else None
        return alone.group(1) if above is None or above.group(1) == alone.group(1) else None
    option = _OPTION_LINE.fullmatch(lines[0]) if len(lines) == 1 else None
    if option is not None:
        letter, text = (
            (option.group(1), option.group(2)) if option.group(1) else (option.group(3), option.group(4))
        )
        return None if _is_second(text) or _DENIED.match(text) else letter
    return None if _STATEMENT.search(end) else _only_in_brackets(end)


def choice_letter(text: str) -> str | None:
    """The letter that a box or a reference answer names: `C`, `(C)`, `C.`, `\\text{C}`, "Option C", `C: 5 m`."""
    match = _LETTER.fullmatch(_plain(text))
    if match is None or _is_second(match.group(2)) or _DENIED.match(match.group(2)):
        return None
    return match.group(1).upper()


def _is_option(match: re.Match[str], text: str) -> bool:
    """Whether a stated letter is one option's letter, neither denied, taken back nor followed by another."""
    after = text[match.end("letter") :]
    stated = match.re is not _NAMED_RIGHT
    if stated and (match.group("not") or _ENDED.match(after) is None or _REJECTED.match(after)):
        return False
    if is_doubted(text[: match.start()]) or _TAKEN_BACK.search(after) is not None:
        return False
    another = _ANOTHER.match(after)
    return another is None or (another["joined"] or another["listed"]) == match.group("letter").upper()


def _only_in_brackets(text: str) -> str | None:
    """The one letter that stands in brackets, unless its last clause denies it: "not (A)", "(A) is excluded"."""
    found = list(_PARENTHESISED.finditer(text))
    if len({match.group(1) for match in found}) != 1:
        return None
    last = found[-1]
    clause = re.split(r"[.,;:!?\n]", text[: last.start()])[-1]
    if _RULED_OUT.search(clause) or _RULED_OUT_AFTER.match(text, last.end()):
        return None
    return last.group(1)


def _is_second(rest: str) -> bool:
    return _ROMAN.match(rest) is None and _SECOND.match(rest) is not None


def _names_letters(boxed: str) -> bool:
    """Whether a box is about letters at all: a formula or a word in a box is not the answer to a choice."""
    return _LETTER.fullmatch(_plain(boxed)) is not None or _SECOND.match(_plain(boxed)) is not None


def _plain(text: str) -> str:
    if len(text) > LONGEST_OPTION:
        return ""
    plain = re.sub(r"\\([A-Z])(?![A-Za-z])", r"\1", normalize(text)).replace('"', " ").replace("*", " ")
    return " ".join(plain.split())
