"""The benchmark of grading runs, on one core, and keeps what a reader needs to date it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "grading.py"


def test_programs_are_timed_in_both_modes(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed: apt-get install bubblewrap")
    out = tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--answers",
            "2",
            "--rounds",
            "1",
            "--only",
            "code,",
            "--json",
            str(out),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"date", "machine", "versions", "settings", "graders"} <= set(result)
    assert result["graders"]["sandbox"] == "strong"
    assert {"code, asserts", "code, functions", "code, script"} <= set(result["results"])
    assert all(name.startswith("code,") for name in result["results"])
    assert all(row["per_second"] > 0 for row in result["results"].values())
