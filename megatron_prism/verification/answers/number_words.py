"""Numbers in English words, and the words that scale a number: "twenty-one", "5 million"."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_SMALL = _SMALL_NAMES.split()
_TEN_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = _TEN_NAMES.split()
_VALUES = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * (place + 2) for place, word in enumerate(_TENS)
}
SCALES = {
    **{
        "hundred": 100,
        "thousand": 10**3,
        "million": 10**6,
        "millions": 10**6,
        "billion": 10**9,
        "billions": 10**9,
    },
    **{
        "trillion": 10**12,
        "trillions": 10**12,
        "dozen": 12,
        "mn": 10**6,
        "bn": 10**9,
        "lakh": 10**5,
        "crore": 10**7,
    },
}
# Words for parts of one: "24 hundredths".
PARTS = {
    **{
        "half": 2,
        "halves": 2,
        "third": 3,
        "thirds": 3,
        "quarter": 4,
        "quarters": 4,
        "fourths": 4,
        "fifths": 5,
    },
    **{"sixths": 6, "sevenths": 7, "eighths": 8, "ninths": 9, "tenth": 10, "tenths": 10, "hundredth": 100},
    **{"hundredths": 100, "thousandths": 1000, "twelfths": 12, "sixteenths": 16},
}
NUMBER_WORDS = frozenset(_VALUES) | frozenset(SCALES)


def word_fraction(text: str) -> Fraction | None:
    """The fraction that English words name ("one half", "two thirds"), or None."""
    head, _, last = text.strip().casefold().replace("-", " ").rpartition(" ")
    count = word_number(head) if last in PARTS else None
    return None if count is None else Fraction(count, PARTS[last])


def word_number(text: str) -> int | None:
    """The number that English words name ("two hundred and five"), or None."""
    words = [word for word in re.split(r"[\s-]+", text.strip().casefold()) if word != "and"]
    if words and words[0] in ("negative", "minus"):
        positive = word_number(" ".join(words[1:]))
        return None if positive is None else -positive
    if not words or any(word not in NUMBER_WORDS for word in words) or words[0] in SCALES:
        return None
    total = current = 0
    previous = ""
    for word in words:
        if word in _VALUES:
            # "six seven" is two candidates, while "twenty six" is one number.
            if previous in _VALUES and not (previous in _TENS and 0 < _VALUES[word] < 10):
                return None
            current += _VALUES[word]
        elif SCALES[word] == 100:
            current = max(current, 1) * 100
        else:
            total += max(current, 1) * SCALES[word]
            current = 0
        previous = word
    return total + current
