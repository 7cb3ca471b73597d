"""The grammar of answers: what kind of thing a text is. The kind of the reference answer decides how both are compared.

`read` tries the kinds in a fixed order and gives the first that fits the whole text; a text that fits none is a `Text`.
Words and identifiers are never read as products of letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import product

from megatron_prism.verification.answers.braces import balanced, split_outside
from megatron_prism.verification.answers.dates import read_clock, read_date
from megatron_prism.verification.answers.formulas import formula
from megatron_prism.verification.answers.kinds import (
    Based,
    Expression,
    Items,
    Matrix,
    Ratio,
    Reading,
    Relation,
    Residue,
    Text,
    Union,
)
from megatron_prism.verification.answers.number_words import word_fraction, word_number
from megatron_prism.verification.answers.numbers import Number, number
from megatron_prism.verification.answers.quantities import is_algebra, quantity, value_of
from megatron_prism.verification.answers.words import has_words, is_noun_phrase, plain_words, without_lead_in

_RELATION_SIGN = re.compile(r"\\(?:le|ge|ne|approx|equiv)(?![A-Za-z])|[=<>]")
_MATRIX = re.compile(
    r"\\begin\s*\{([pbB]?matrix|array|smallmatrix)\}(?:\s*\{[lcr| ]*\})?(.*?)\\end\s*\{\1\}", re.DOTALL
)
_RESIDUE = re.compile(
    r"(?:[A-Za-z]\s*(?:\\equiv|=|\\cong)\s*)?(.+?)\s*(?:\\pmod|\(?\s*\\mod|\(?\s*\"?\bmod\b\"?)\s*\{?\s*([^(){}]+?)\s*\}?\s*\)?"
)
_BASED = re.compile(
    r'\(?"?\s*([0-9A-Z]+|[0-9a-f]*\d[0-9a-f]*)\s*"?\)?\s*_\s*(?:\{\s*)?"?\s*(\d{1,2}|[a-z]+)\s*"?\s*(?:\})?'
)
_BASE_WORDS = re.compile(
    r'([0-9A-Z]+)\s*\(?\s*"?\s*\(?\s*(?:in\s+)?base[\s-]+(\d{1,2}|[a-z]+)\s*\)?\s*"?\s*\)?'
)
_MEMBER = re.compile(
    r"(?:[A-Za-z](?:_\{?\w\}?)?|\([a-z](?:\s*,\s*[a-z])+\))\s*\\in(?![A-Za-z])\s*(.+)", re.DOTALL
)
# Words that stand for a sign.
_PHRASES = {"infinity": "\\infty", "negative infinity": "-\\infty", "empty set": "\\emptyset"}
# A point with its name: P(2, 3).
_POINT = re.compile(r"[A-Z](?:'|_\{?\d\}?)?\s*(\([^()]*,[^()]*\))")
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||:)\s*(.+?)\s*\\\}", re.DOTALL)
_JOINTS = re.compile(r'\s*"\s*(,?\s*(?:and|or)|,)\s*"\s*|\s+(and|or)\s+|\s*\\(vee|wedge|cup)(?![A-Za-z])\s*')
_ASSIGNED = re.compile(
    r"[A-Za-z](?:_\{?\w+\}?)?(?:'*)|\\[a-z]+(?:_\{?\w+\}?)?|[A-Za-z]\w?(?:\^\{?-1\}?)?\s*\([^()]*\)|\(?(?:[a-z]|\\[a-z]+)(?:\s*,\s*(?:[a-z]|\\[a-z]+))+\s*\)?|\|?[A-Z]{1,3}\|?"
    r"|m?\s*\\(?:angle|triangle|overline|vec|hat|bar)\s*\{?\s*[A-Za-z]{1,4}\s*\}?|\[[A-Z]{3,6}\]|[a-z]{1,2}'*"
)


@lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """The kind and parts of normalized `text`."""
    text = _PHRASES.get(plain_words(text), _trimmed(text))
    for reader in _READERS:
        found = reader(text)
        if found is not None:
            return found
    if not has_words(text) and is_algebra(text):
        return Expression(text)
    return Text(plain_words(text))


def is_assigned(side: str) -> bool:
    """Whether one side of an equation only names what the other side gives: `x`, `f(x)`, `AB`, a word, `x_1`."""
    if side in ("\\pi", "e", "i", "\\infty"):
        return False
    names = re.fullmatch(r"\(\s*([^()]*)\s*\)", side)
    if names is not None:
        # (y, x) = (1, 2) is not the point (1, 2).
        order = [name.strip(" \\") for name in names.group(1).split(",")]
        if order != sorted(order):
            return False
    return _ASSIGNED.fullmatch(side) is not None or (has_words(side) and is_noun_phrase(side))


def names_value(side: str) -> bool:
    """Whether a side before `= 5` only says what is 5: also `m + n`, `\\sin x` or `f'(x)`, but not `x + 1` or `-x`."""
    if is_assigned(side):
        return True
    bare = re.sub(r"\\?(?:gcd|lcm|max|min|sum|prod)[^()]*\([^()]*\)", "F", side)
    bare = re.sub(r"(?<![\\A-Za-z])[A-Za-z]'*\s*\([^()]*\)", "F", bare)
    bare = re.sub(r"[\^_]\s*(?:\{[^{}]*\}|\w)|'", "", bare)
    bare = re.sub(r"(?<![A-Za-z\\])[A-Z]{2,3}(?![A-Za-z])", "S", bare)
    # 100m + n names the sum of two unknowns; 2x and x + 1 would leave it to the reader to solve.
    if len(set(re.findall(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", bare))) > 1:
        bare = re.sub(r"\d+\s*(?=[a-z])", "", bare)
    if re.search(r"[\d,]|^\s*-", bare) or has_words(bare):
        return False
    return re.search("[A-Za-z]", re.sub(r"\\(?:pi|infty)(?![A-Za-z])", "", bare)) is not None


def _trimmed(text: str) -> str:
    text = text.strip()
    while True:
        before = text
        text = text.strip().rstrip(";:")
        text = re.sub(r"(?:(?<![\d.])|(?<=\d))\.$|,$|\\\\$|\\$", "", text).strip()
        text = without_lead_in(text)
        if text.startswith("{") and text.endswith("}") and balanced(text[1:-1]) and not text.startswith("{}"):
            text = text[1:-1]
        if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
            inner = text[1:-1].strip()
            if number(inner) is not None:
                return inner
        if text == before:
            return text


def _residue(text: str) -> Reading | None:
    match = _RESIDUE.fullmatch(text) if "mod" in text else None
    if match is None or (number(match.group(2)) is None and not re.fullmatch(r"[A-Za-z]", match.group(2))):
        return None
    return Residue(match.group(1).strip(), match.group(2).strip())


def _based(text: str) -> Reading | None:
    match = _BASED.fullmatch(text) or _BASE_WORDS.fullmatch(text)
    if match is None:
        return None
    base = int(match.group(2)) if match.group(2).isdigit() else word_number(match.group(2))
    digits = match.group(1)
    if base is None or not 2 <= base <= 36 or (not digits[0].isdigit() and base < 11):
        return None
    if digits.isalpha() and base < 16:
        return None
    if any(int(digit, 36) >= base for digit in digits):
        return None
    return Based(digits.upper().lstrip("0") or "0", base)


def _matrix(text: str) -> Reading | None:
    inner = text[1:-1].strip() if text[:1] + text[-1:] in ("()", "[]") else text
    match = _MATRIX.search(inner)
    if match is None or match.end() != len(inner):
        return None
    factor = inner[: match.start()].strip()
    if factor and factor != "-" and value_of(factor) is None:
        return None
    rows = [row.strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?", match.group(2).replace("\\hline", ""))]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows if row]
    if factor:
        scale = "-1" if factor == "-" else factor
        cells = [[f"({scale}) \\cdot ({cell})" for cell in row] for row in cells]
    return Matrix(tuple(map(tuple, cells)))


def _interval_or_tuple(text: str) -> Reading | None:
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Items((), "{}")
    if re.fullmatch(r"\\mathbb\{R\}(?:\^|_)\{?\+\}?", text):
        return Items(("0", "\\infty"), "()")
    if text == "\\mathbb{R}" or plain_words(text) in ("all real numbers", "all reals", "all real numbers x"):
        return Items(("-\\infty", "\\infty"), "()")
    labelled = _POINT.fullmatch(text)
    if labelled is not None:
        text = labelled.group(1)
    builder = _BUILDER.fullmatch(text)
    if builder is not None:
        return read(builder.group(2))
    member = _MEMBER.fullmatch(text)
    if member is not None:
        inner = read(member.group(1))
        return inner if isinstance(inner, Items | Union) else None
    for opening, closing, brackets in (("\\{", "\\}", "{}"), ("\\langle", "\\rangle", "<>")):
        if text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)].strip()
            if opening not in inside and closing not in inside:
                return Items(tuple(split_outside(inside, (",", ";"))) if inside else (), brackets)
    if len(text) > 2 and (text[0] == "]" or text[-1] == "[") and "," in text:
        # Open ends as reversed brackets: ]0, 1[.
        text = text[0].replace("]", "(") + text[1:-1] + text[-1].replace("[", ")")
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _spans(text):
        parts = split_outside(text[1:-1], (",", ";"))
        if len(parts) > 1 and all(parts):
            return Items(tuple(parts), text[0] + text[-1])
        if text[0] == "[" and text[-1] == "]" and len(parts) == 1 and parts[0]:
            return Items(tuple(parts), "[]")
    return None


def _spans(text: str) -> bool:
    """Whether the first bracket is closed by the last one."""
    depth = 0
    for position, character in enumerate(text):
        depth += character in "(["
        depth -= character in ")]"
        if depth == 0:
            return position == len(text) - 1
    return False


def _union(text: str) -> Reading | None:
    text = re.sub(r"^(\\mathbb\{R\})\s*-\s*(?=\\\{)", r"\1\\setminus ", text)
    without, *removed = split_outside(text, ("\\setminus",))
    if len(removed) == 1 and without:
        points = read(removed[0])
        if isinstance(points, Items) and points.brackets == "{}":
            return Union((without,), "or", points.parts)
    parts = split_outside(text, ("\\cup",))
    return Union(tuple(parts)) if len(parts) > 1 and all(parts) else None


def _list(text: str) -> Reading | None:
    """Parts between commas, semicolons, "and" or "or"; `\\pm` gives two. Inequalities so joined are a `Union`."""
    if number(text) is not None:
        return None
    if re.search(r"\\(?:vee|wedge)(?![A-Za-z])", text) and not _is_inequality(text):
        return None
    joints = {match.group(1) or match.group(2) or match.group(3) for match in _JOINTS.finditer(text)}
    flat = _JOINTS.sub(" , ", text)
    separators = (",", ";") if "\\begin" in text else (",", ";", "\\\\")
    parts = [part for part in split_outside(flat, separators) if part]
    if len(parts) > 1:
        if any(_is_inequality(part) for part in parts):
            words = {joint.strip(" ,") for joint in joints}
            excluded = re.match(r"([A-Za-z])\s*\\ne(?![A-Za-z])", parts[0])
            if excluded is not None:
                # x ≠ 1, 2 excludes both.
                parts = [
                    part if _is_inequality(part) else f"{excluded.group(1)} \\ne {part}" for part in parts
                ]
            return Union(tuple(parts), "or" if words & {"or", "vee", "cup"} else "and")
        name = re.match(r"([A-Za-z])\s*=\s*", parts[0])
        if name and not any("=" in part for part in parts[1:]):
            parts[0] = parts[0][name.end() :]
        if all(_could_be_item(part) for part in parts):
            return Items(tuple(each for part in parts for each in _signs_expanded(part)))
        return None
    expanded = _signs_expanded(text)
    return Items(tuple(expanded)) if len(expanded) > 1 else None


def _could_be_item(part: str) -> bool:
    return len(part) <= 200 and not part.startswith(("+", "^", "_"))


def _is_inequality(part: str) -> bool:
    return re.search(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]", part) is not None


def _signs_expanded(part: str) -> list[str]:
    """`1 \\pm 2` as two values, `\\pm 1 \\pm 2` as four; `\\mp` has the sign opposite to `\\pm`."""
    signs = re.findall(r"\\(pm|mp)(?![A-Za-z])", part)
    if not signs or len(signs) > 3:
        return [part]
    pieces = re.split(r"\\(?:pm|mp)(?![A-Za-z])", part)
    choices = [("+", "-") if name == "pm" else ("-", "+") for name in signs]
    rows = zip(*choices, strict=True) if "mp" in signs else product(*choices)
    expanded = []
    for row in rows:
        text = pieces[0] + "".join(sign + piece for sign, piece in zip(row, pieces[1:], strict=True))
        expanded.append(re.sub(r"(^|=)\s*\+", r"\1 ", text).strip())
    return expanded


def _relation(text: str) -> Reading | None:
    if text.startswith("\\approx"):
        return read(text[len("\\approx") :])
    sides, signs = _split_relation(text)
    if not signs:
        return None
    if sides[0] == "" and signs[0] in ("=", "\\approx"):
        return read(text.partition(signs[0])[2])
    # "≥ 3" without a variable is an inequality for whichever variable the other side has.
    bound = len(sides) == 2 and sides[0] == "" and signs[0] in ("<", ">", "\\le", "\\ge")
    return Relation(sides, signs) if all(sides) or bound else None


def _split_relation(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sides and signs outside of brackets: `P(X = 2) = 0.3` has two sides, and so has a sum from `k=1`."""
    sides: list[str] = []
    signs: list[str] = []
    depth = first = position = 0
    while position < len(text):
        depth += (text[position] in "({") - (text[position] in ")}")
        match = _RELATION_SIGN.match(text, position) if depth <= 0 else None
        if match is None:
            position += 1
            continue
        sides.append(text[first : match.start()].strip())
        signs.append(match.group())
        first = position = match.end()
    return (*sides, text[first:].strip()), tuple(signs)


def _ratio(text: str) -> Reading | None:
    flat = re.sub(r'\s*"\s*to\s*"\s*|\s+to\s+', ":", text)
    parts = split_outside(flat, (":",))
    if not 2 <= len(parts) <= 6 or any(value_of(part) is None for part in parts):
        return None
    return Ratio(tuple(parts))


def _number(text: str) -> Reading | None:
    found = number(text)
    if found is not None:
        return found
    plain = text.replace('"', " ")
    whole = word_number(plain)
    words = word_fraction(plain) if whole is None else Fraction(whole)
    return None if words is None else Number(words)


def _formula(text: str) -> Reading | None:
    found = formula(text)
    return None if found is None else Text(plain_words(text), found)


# The order matters: a date is no difference, 1,000 is no list, and 5 cm is no product.
_READERS: tuple[Callable[[str], Reading | None], ...] = (
    *(read_date, read_clock, _matrix, _number, _residue, _based, _interval_or_tuple, _union, quantity),
    *(_list, _relation, _ratio, _formula),
)
