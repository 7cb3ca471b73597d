"""Which letters are words, and what words beside a value mean: a lead-in, a unit, a noun, a hedge or a denial."""

from __future__ import annotations

import re

from megatron_prism.verification.answers.number_words import NUMBER_WORDS

# Letter runs that mathematics uses as products of single letters. Any other run of three or more is a word.
_PRODUCTS = re.compile(
    r"[a-d]{1,4}|[xyzw]{1,4}|[p-s]{1,4}|[uvw]{1,3}|[m-n]{1,2}k?|[r-t]{1,3}|[i-k]{1,3}|rx|mx|kx|ax|bx|cx|[xyz][a-e]"
)
_SHORT = (
    "an as at be by do go he if in is it me my no of oh ok on or ox so to up us we am pm ad bc th st nd rd"
)
_SHORT_WORDS = frozenset(_SHORT.split())
_PRONOUNCED = frozenset(("bad", "dad", "cab", "dab", "add"))
_RUN = re.compile(r"(?<!\\)(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTIONS = "sin cos tan log exp max min gcd lcm mod det arg lim sup inf deg dim ker"
_MATH_NAMES = frozenset(_FUNCTIONS.split())

_CONCLUSION = re.compile(
    r'^"?\s*(?:thus|hence|therefore|so|then|finally)\b\s*,?\s*("?)\s*(?=\S)', re.IGNORECASE
)
_LEAD_IN = re.compile(
    r'^["\s]*(?:(?:so|thus|hence|therefore|and)\b[,\s]*)?(?:(?:the|my|our)\s+)?(?:final\s+|correct\s+|required\s+)?'
    r'(?:answer|result|solution|value|total|probability|number|area|sum|option|choice)s?(?:\s+(?:is|are|equals)\b|\s*[:=])[:\s"]*'
    r'|^["\s]*(?:it\s+is|they\s+are|we\s+(?:get|have)|about|approximately|exactly|ans(?:wer)?\s*[:.]?)[\s"]+(?=[-\d\\.])',
    re.IGNORECASE,
)
# "The number of ways is 24", "Perimeter: 28": what the value is, in words.
_DESCRIBED = re.compile(
    r'^"\s*(?:the|its|our)\s+([A-Za-z][A-Za-z\s]{0,60}?)\s+(?:is|are|equals)\s*(?=")|^"\s*([A-Za-z][A-Za-z\s]{0,40}):\s*(?=")'
    r"|^\"?\s*in\s+(?=\"?\d{4}\"?$)",
    re.IGNORECASE,
)
# Words that turn a value into several candidates, a bound or a denial: beside one of these, nothing is a value.
_HEDGE_WORDS = (
    "not no or nor neither either and but is isn't are was wrong incorrect false maybe perhaps probably possibly "
    "except unless than least most more less fewer up over under between without any all none every both to "
    "through versus vs then instead actually wait unknown undefined unclear if any anything whatever cannot "
    "can't never guess correct right true accept "
    "negative double half twice factorial score gross permille base fails works work small large big plus minus "
    "squared cubed below above zero st nd rd th"
)
_MONTHS = "january february march april may june july august september october november december"
_HEDGES = frozenset(_HEDGE_WORDS.split()) | frozenset(_MONTHS.split())
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def is_word(run: str) -> bool:
    """Whether a run of letters is a word or an identifier, and not a product of variables."""
    if len(run) == 1 or run in _MATH_NAMES:
        return False
    if any(letter.isupper() for letter in run):
        return True
    if len(run) == 2:
        return run in _SHORT_WORDS
    return run in _PRONOUNCED or _PRODUCTS.fullmatch(run) is None


def has_words(text: str) -> bool:
    """Whether normalized `text` contains a quoted text or a run of letters that is a word.

    Beside an operator a run of up to three letters with capitals is a product: `nRT/V`. Alone, `CO2` is a name.
    """
    if '"' in text:
        return True
    runs = [match.group() for match in _RUN.finditer(_without_commands(text))]
    if re.search(r"[-+/]|\\(?:frac|sqrt|cdot|times)", text) and not re.search(r"[A-Za-z]\d", text):
        runs = [run for run in runs if len(run) > 3 or run.islower() or run in _MATH_NAMES]
    return any(is_word(run) for run in runs)


def without_lead_in(text: str) -> str:
    """Without "The answer is" and the like at the start."""
    conclusion = _CONCLUSION.match(text)
    if conclusion is not None:
        rest = text[conclusion.end() :]
        text = rest if rest.count('"') % 2 == 0 else f'"{rest}'
    described = _DESCRIBED.match(text)
    if described is not None:
        words = described.group(1) or described.group(2) or ""
        if not words or is_noun_phrase(words.replace(" of ", " ")):
            rest = text[described.end() :]
            return (rest[1:] if rest.startswith('"') else rest.replace('"', "")).strip()
    lead_in = _LEAD_IN.match(text)
    if lead_in is None:
        return text.strip()
    rest = text[lead_in.end() :]
    # A quotation mark may have been cut off: `"The answer is" 4` leaves none, `"The answer is red"` leaves one.
    if rest.count('"') % 2:
        quoted = '"' in lead_in.group() and rest.find('"') > 0
        rest = f'"{rest}' if quoted else rest.replace('"', "", 1)
    return rest.strip()


def is_noun_phrase(text: str) -> bool:
    """Whether the words beside a value only say what it counts ("red balls", "students"): no digits, no hedge."""
    words = _WORD.findall(text.replace('"', " "))
    rest = _WORD.sub("", text.replace('"', " "))
    rest = re.sub(r"\^\s*\{?\s*[23]\s*\}?\s*$", "", rest)
    if not 0 < len(words) <= 6 or re.sub(r"[\s.,/°()-]", "", rest):
        return False
    lower = [word.casefold() for word in words]
    # "doubled", "excluded", "doesn't": said of the value, not counted by it.
    changed = lower[-1].endswith("ed") or any(word.endswith("n't") for word in lower)
    return not changed and not any(word in _HEDGES or word in NUMBER_WORDS for word in lower)


def plain_words(text: str) -> str:
    """Words for comparison: lower case, single spaces, without quotes, a leading article or a final full stop."""
    text = re.sub(r"\\(alpha|beta|gamma|delta|lambda|mu|pi|sigma|omega)(?![A-Za-z])\s*", r" \1 ", text)
    text = re.sub(r"(?<=[A-Za-z\" ])-(?=[A-Za-z])", " ", text)
    text = re.sub(r'(?<=[A-Za-z]{2})\s*"?\s*\^\s*', "", text)
    text = re.sub(r"[\"{}_]|\\(?=[\s,;])", "", text.replace("~", " "))
    text = re.sub(r"\s*([-,/()])\s*", r"\1", text)
    words = " ".join(text.split()).casefold().rstrip(".!;:,").strip()
    return re.sub(r"^(?:the|an?)\s+(?=\w{2})", "", words)


def _without_commands(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+", " ", text)
