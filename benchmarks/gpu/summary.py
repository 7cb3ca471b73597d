"""The tables of all pieces, as Markdown for docs/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGETS = (
    "Targets on an H100 or H200: 45 % MFU (dense) and 35 % (hybrid) at 8k tokens, and 128k tokens of a model with a "
    "billion parameters on one card."
)


def markdown(out: Path) -> str:
    """The summary of the pieces whose files are in `out`."""
    pieces = [json.loads(file.read_text()) for file in sorted(out.glob("piece_*.json"))]
    parts = [_head(pieces), TARGETS]
    found = {name: entry for piece in pieces for name, entry in piece["results"].items()}
    rows = {name: entry["result"] for name, entry in found.items() if "result" in entry}
    parity = {name: row for name, row in rows.items() if isinstance(row, dict) and "passed" in row}
    if parity:
        keys = ("loss", "logits", "gradient", "resume", "export")
        parts.append(_table(["model", *keys, "passed"], [
            [name, *(f"{row[key]:.1e}" for key in keys), "yes" if row["passed"] else "**no**"]
            for name, row in parity.items()
        ]))  # fmt: skip
    speed = {
        name: row for name, row in rows.items() if isinstance(row, dict) and "mfu_of_measured_matmul" in row
    }
    if speed:
        columns = [
            "training",
            "tokens/s",
            "TFLOP/s",
            "MFU (measured)",
            "MFU (data sheet)",
            "peak GiB",
            "planned GiB",
        ]
        parts.append(_table(columns, [
            [
                name, f"{row['tokens_per_second']:,}", f"{row['tflops']:.3g}", _percent(row["mfu_of_measured_matmul"]),
                _percent(row["mfu_of_data_sheet"]), row["peak_memory_gib"], row["planned_memory_gib"],
            ]
            for name, row in speed.items()
        ]))  # fmt: skip
    for name, row in rows.items():
        if isinstance(row, list):
            lines = [
                [each["name"], each["calls"], each["milliseconds"], _percent(each["share"])] for each in row
            ]
            parts.append(f"{name}\n\n" + _table(["kernel", "calls", "ms", "share"], lines))
    rest = [
        name for name in rows if name not in parity and name not in speed and not isinstance(rows[name], list)
    ]
    if rest:
        parts.append(_table(["measurement", "result"], [[name, _short(rows[name])] for name in rest]))
    lost = {name: entry for name, entry in found.items() if "result" not in entry}
    if lost:
        parts.append(_table(["not measured", "why"], [
            [name, str(entry.get("failed") or entry.get("left_out")).replace("|", "/")] for name, entry in lost.items()
        ]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _head(pieces: list[dict[str, Any]]) -> str:
    if not pieces:
        return "Nothing was measured."
    first = pieces[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    where = first["device"] if first["gpu"] else f"**No GPU**: these are figures of {first['device']}."
    return f"{where}; {versions}."


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return str(value)
