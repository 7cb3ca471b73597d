"""The parity table, some of its rows: layouts that agree with one process, and a planted fault that must not."""

from __future__ import annotations

import json
from pathlib import Path

import warm

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "parity.py"


def test_layouts_agree_and_a_planted_fault_does_not(tmp_path: Path) -> None:
    """The fault changes an attribute of the trainer; when the trainer stopped reading it, the fault had no effect."""
    out = tmp_path / "result.json"
    done = warm.python(SCRIPT, "--only", "granite: DP 2", "--json", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["results"]
    faults = [row for row in rows if row["control"]]
    assert len(faults) == 1
    assert len(rows) >= 3
    assert faults[0]["loss_gap"] > 1e-2
    assert all(row["loss_gap"] < row["bound"] for row in rows if not row["control"])
