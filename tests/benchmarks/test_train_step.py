"""The benchmark of a training step runs, compares equal shapes, and keeps what a reader needs to date it."""

from __future__ import annotations

import json
from pathlib import Path

import warm

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"


def test_both_sides_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    sizes = (
        "--rounds",
        "2",
        "--calls",
        "1",
        "--warmup",
        "1",
        "--length",
        "16",
        "--batch",
        "2",
        "--dtype",
        "fp32",
    )
    done = warm.python(SCRIPT, *sizes, "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"date", "machine", "versions", "settings"} <= set(result)
    assert [row["model"] for row in result["results"]] == ["dense", "hybrid"]
    for row in result["results"]:
        seconds = {side: timing["median"] for side, timing in row["seconds_per_step"].items()}
        assert row["ratio"] == seconds["transformers"] / seconds["ours"] > 0
