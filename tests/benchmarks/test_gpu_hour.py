"""The script for the first hour on a GPU runs every piece on an imitated one, and keeps what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import warm

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
SCRIPT = FOLDER / "run.py"
# What a machine without Triton's driver cannot measure.
WITHOUT_GPU = {
    "scan, ours against mamba_ssm",
    "hybrid, 8k, recompute selective, compiled, scan of mamba_ssm",
}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """The files of all pieces, run on an imitated GPU, with the CPU's numbers for comparison."""
    out = tmp_path_factory.mktemp("hour")
    families = ("--families", "llama", "nemotron-h")
    assert warm.python(SCRIPT, "--reference", "--out", out, *families).returncode == 0
    done = warm.python(SCRIPT, "--imitate", "--piece", 1, 2, 3, 4, 5, "--out", out, *families)
    assert done.returncode == 0, done.stderr[-3000:]
    files = {piece: json.loads((out / f"piece_{piece}.json").read_text()) for piece in range(1, 6)}
    return files | {"summary": (out / "summary.md").read_text()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU of its own")
@pytest.mark.parametrize("piece", range(1, 6))
def test_every_measurement_of_a_piece_is_taken(pieces, piece):
    results = pieces[piece]["results"]
    lost = {name: entry for name, entry in results.items() if "result" not in entry}
    assert len(results) >= 2
    assert set(lost) <= WITHOUT_GPU, lost


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU of its own")
def test_the_families_agree_with_the_cpu(pieces):
    rows = [entry["result"] for name, entry in pieces[1]["results"].items() if "," in name]
    assert len(rows) == 4
    assert all(row["passed"] for row in rows), rows
    assert "45 % MFU" in pieces["summary"]


def test_a_failed_measurement_is_kept_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    recorder = __import__("recorder")
    record = recorder.Recorder(tmp_path, 9, seconds=600)

    def too_long():
        while True:
            pass

    assert record.measure("broken", lambda: 1 / 0) is None
    assert record.measure("slow", too_long, limit=0.2) is None
    assert record.measure("good", lambda: 5) == 5
    record.end = 0
    assert record.measure("late", lambda: 6) is None
    found = json.loads((tmp_path / "piece_9.json").read_text())["results"]
    assert found["broken"]["failed"] == "ZeroDivisionError: division by zero"
    assert found["slow"]["failed"].startswith("TimeoutError")
    assert found["good"]["result"] == 5
    assert "left_out" in found["late"]
    sys.modules.pop("recorder")
