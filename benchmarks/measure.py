"""What every benchmark shares: sides timed in turns in one run, medians, ratios, and a header that dates them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_prism.platform.hardware import machine_facts, versions


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one side: the median over the rounds, and the fastest and slowest round."""

    median: float
    fastest: float
    slowest: float


def alternate(
    sides: Mapping[str, Callable[[], Any]], rounds: int, calls: int, warmup: int
) -> dict[str, Timing]:
    """Time each side in turns, `calls` calls a round, after `warmup` calls that do not count.

    In turns, because a machine's speed drifts: a slow minute then hits every side, and the ratio stands.
    """
    for call in sides.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {
        name: Timing(statistics.median(values), min(values), max(values)) for name, values in seconds.items()
    }


def header(**settings: Any) -> dict[str, Any]:
    """Date, machine, versions (with the commit) and the settings of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": versions(),
        "settings": settings,
    }


def print_speeds(title: str, results: Sequence[Mapping[str, Any]], column: str) -> None:
    """A table of tokens per second beside transformers, a row per model; `column` is a further number of a result."""
    table = Table(title=title)
    for name in ("model", column.replace("_", " "), "ours tok/s", "transformers tok/s", "ratio"):
        table.add_column(name, justify="right")
    for row in results:
        speed = row["tokens_per_second"]
        numbers = (row[column], speed["ours"], speed["transformers"])
        table.add_row(row["model"], *(f"{number:,}" for number in numbers), f"{row['ratio']:.2f}")
    Console().print(table)


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    """Keep a result as JSON, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
