"""benchmarks/analyze.py on tiny models: every side runs, agrees with the script, and is printed."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import analyze


def tiny_models(folder: Path, gigabytes: float, count: int) -> None:
    base = make_checkpoint("llama", folder / "base", torch.bfloat16)
    for number in range(count):
        other = Path(shutil.copytree(base, folder / f"other{number}"))
        state = load_file(other / "model.safetensors")
        moved = {name: tensor * (1.25 + number) for name, tensor in state.items()}
        save_file(moved, other / "model.safetensors", {"format": "pt"})


def test_every_side_is_timed_and_the_result_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analyze, "make_models", tiny_models)
    monkeypatch.setattr(analyze, "run_side", lambda *side: {**analyze.run_once(*side), "whole": 1.0})
    result = analyze.benchmark(
        argparse.Namespace(gigabytes=1.0, many=2, rounds=1, threads=torch.get_num_threads()), tmp_path
    )
    assert result["runs"]["script"][0]["delta"] == pytest.approx(0.25, rel=0.01)
    assert result["deltas_differ_by"] < 1e-5
    analyze.show(result, 2)
    shown = capsys.readouterr().out
    assert "% of the speed of reading and converting blocks" in shown
    assert "2 checkpoints take" in shown
