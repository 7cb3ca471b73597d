"""Shared by the benchmarks: arguments, alternating timing, and results with date, machine and versions."""

from __future__ import annotations

import argparse
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
    """Seconds per call of one side: the median over the rounds, the fastest and the slowest round."""

    median: float
    fastest: float
    slowest: float


def alternate(
    sides: Mapping[str, Callable[[], Any]], rounds: int, calls: int, warmup: int
) -> dict[str, Timing]:
    """Time the sides in alternation, `calls` calls per round, after `warmup` calls that do not count.

    The speed of a machine drifts. With alternation, a slow minute affects every side, so the ratio stays valid.
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


def argument_parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the benchmark's docstring, with `--json FILE` for the result."""
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    return parser


def memory_bytes(kind: str) -> int:
    """Bytes of this process's resident memory: now (`VmRSS`) or at its peak (`VmHWM`); Linux.

    Unlike the peak of getrusage, `VmHWM` does not include the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {kind}")


def _header(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Date, machine, versions (with the commit) and the settings of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": versions(),
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in settings.items()
            if key != "json" and value is not None
        },
    }


def print_speeds(title: str, results: Sequence[Mapping[str, Any]], column: str) -> None:
    """Print tokens per second, ours and those of transformers, one row per model; `column` is a further key to show."""
    table = Table(title=title)
    for name in ("model", column.replace("_", " "), "ours tok/s", "transformers tok/s", "ratio"):
        table.add_column(name, justify="right")
    for row in results:
        speed = row["tokens_per_second"]
        numbers = (row[column], speed["ours"], speed["transformers"])
        table.add_row(row["model"], *(f"{number:,}" for number in numbers), f"{row['ratio']:.2f}")
    Console().print(table)


def write(arguments: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Write a result as JSON with date, machine, versions and arguments, if `--json` is set."""
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_header(vars(arguments)) | dict(result), indent=2) + "\n")
