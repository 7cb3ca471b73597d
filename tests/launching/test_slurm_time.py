"""Time limits in Slurm's forms, and limits that are too short for the signal before them."""

from __future__ import annotations

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.launching.slurm_time import check_time, seconds_of


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("4:00:00", 14_400),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("2-00:00:10", 172_810),
        ("UNLIMITED", None),
        ("infinite", None),
        ("0", None),
    ],
)
def test_the_forms_of_a_time_limit(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(
    "limit", ["", "abc", "4h", "1:2:3:4", "-5", "1-", "-1:00", "1.5", "1-2-3", "4 hours"]
)
def test_what_is_no_time(limit):
    with pytest.raises(ConfigError, match="is none of Slurm's forms"):
        seconds_of(limit)


def test_a_limit_must_leave_time_before_the_signal():
    """Slurm may send it a minute early, and a stage that stops at its start would come back for ever."""
    check_time("00:06:01", 300)
    check_time("00:01:00", 0)
    check_time("UNLIMITED", 300)
    with pytest.raises(ConfigError, match=r"time=00:06:00 ends 360 s after the start, and warn_seconds=300"):
        check_time("00:06:00", 300)
