"""Time limits as Slurm reads them.

Its forms are minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and
days-hours:minutes:seconds (sbatch(1), `--time`); 0, UNLIMITED and INFINITE mean that there is no limit.
"""

from __future__ import annotations

import re

from megatron_prism.errors import ConfigError

FORMS = "MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS"
MINUTE, HOUR, DAY = 60, 3600, 86400
# Slurm may send the signal before the time limit so much earlier than it was told (sbatch(1), `--signal`).
EARLIER = 60


def seconds_of(limit: str) -> int | None:
    """The seconds of a time limit; None if there is none.

    Raises:
        ConfigError: if Slurm would not understand it.
    """
    text = limit.strip()
    if text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if (
        not all(re.fullmatch("[0-9]+", part) for part in [*parts, *([days] if dash else [])])
        or len(parts) > 3
    ):
        raise ConfigError(f"time={limit} is none of Slurm's forms: {FORMS}")
    units = (HOUR, MINUTE, 1) if dash or len(parts) == 3 else (MINUTE, 1)
    found = int(days or 0) * DAY + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))
    return found or None


def check_time(limit: str, warn_seconds: int) -> None:
    """Raise a ConfigError for a limit that is no time, or so short that the signal before it comes at the start."""
    found = seconds_of(limit)
    if found is not None and warn_seconds and found <= warn_seconds + EARLIER:
        raise ConfigError(
            f"time={limit} ends {found} s after the start, and warn_seconds={warn_seconds} asks a stage to stop up to "
            f"{warn_seconds + EARLIER} s before, so it would never come further; make time longer, or warn_seconds "
            "shorter (0: no signal)"
        )
