"""Dates and times of day. They are read before arithmetic, so that 2024-01-15 is never 2008."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august"),
    *("september", "october", "november", "december"),
)
_MONTH_NUMBERS = {name: number for number, name in enumerate(_MONTHS, 1)} | {
    name[:3]: number for number, name in enumerate(_MONTHS, 1)
}
_MONTH = r"(?P<month>[A-Za-z]{3,9})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_WEEKDAY = r"(?:(?P<weekday>mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DATES = (
    re.compile(rf"{_WEEKDAY}{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+(?P<year>\d{{4}}))?", re.IGNORECASE),
    re.compile(rf"{_WEEKDAY}{_MONTH}\s+{_DAY}(?:,?\s+(?P<year>\d{{4}}))?", re.IGNORECASE),
    re.compile(rf"{_MONTH},?\s+(?P<year>\d{{4}})", re.IGNORECASE),
    re.compile(r"(?P<year>\d{4})[-/.](?P<number>\d{1,2})[-/.](?P<day>\d{1,2})"),
)
# 1/2/2024 is January 2 or February 1: it equals only what is written alike.
_AMBIGUOUS = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})")
_TIME = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?\s*(?P<half>[AaPp]\.?\s*[Mm]\.?)?"
    r"|(?P<bare>\d{1,2})\s*(?P<half2>[AaPp]\.?\s*[Mm]\.?)"
)


@dataclass(frozen=True)
class Date:
    """A calendar date; `day` or `year` is None if it is not written, and `written` is set for an ambiguous one."""

    year: int | None
    month: int
    day: int | None
    written: str = ""
    weekday: str = ""


@dataclass(frozen=True)
class Clock:
    """A time of day as written; `half` is "a", "p" or "" (not stated)."""

    hour: int
    minute: int
    second: int
    half: str


def read_date(text: str) -> Date | None:
    """The date that `text` is, or None."""
    words = " ".join(text.replace('"', " ").split())
    for pattern in _DATES:
        match = pattern.fullmatch(words)
        if match is None:
            continue
        fields = match.groupdict()
        month = fields.get("number") or _MONTH_NUMBERS.get((fields.get("month") or "").casefold())
        if month is None or not 1 <= int(month) <= 12:
            continue
        weekday = (fields.get("weekday") or "").casefold()
        return Date(_int(fields.get("year")), int(month), _int(fields.get("day")), weekday=weekday)
    match = _AMBIGUOUS.fullmatch(words)
    if match is not None:
        first, second, year = (int(each) for each in match.groups())
        return Date(year, 0, None, f"{first}/{second}/{year}")
    return None


def read_clock(text: str) -> Clock | None:
    """The time of day that `text` is, or None. `12:30` is one; `1:2` is a ratio."""
    match = _TIME.fullmatch(" ".join(text.replace('"', " ").split()))
    if match is None:
        return None
    half = (match["half"] or match["half2"] or "")[:1].casefold()
    return Clock(
        int(match["hour"] or match["bare"]), _int(match["minute"]) or 0, _int(match["second"]) or 0, half
    )


def same_date(gold: Date, answer: Date) -> bool:
    """Whether both are the same day; a weekday that only one of them states agrees."""
    weekdays = {gold.weekday, answer.weekday} - {""}
    return len(weekdays) < 2 and replace(gold, weekday="") == replace(answer, weekday="")


def same_clock(gold: Clock, answer: Clock) -> bool:
    """Whether both are the same time; a missing "AM" or "PM" agrees with either."""
    if (gold.minute, gold.second) != (answer.minute, answer.second):
        return False
    if gold.half and answer.half:
        return (gold.hour, gold.half) == (answer.hour, answer.half)
    if gold.half or answer.half:
        stated, other = (gold, answer) if gold.half else (answer, gold)
        full = stated.hour % 12 + (12 if stated.half == "p" else 0)
        return other.hour in (stated.hour, full)
    return gold.hour == answer.hour


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
