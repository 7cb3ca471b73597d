"""The examples run as their docstrings say, on a user's texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from tiny_models import VOCABULARY, make_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = (
    "vocab_size=265", "steps=3", "train.architecture.hidden_size=32", "train.architecture.ffn_hidden_size=48",
    "train.batch.micro_batch_size=2", "train.batch.global_batch_size=2", "train.validation_batches=1",
)  # fmt: skip


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.txt").write_text(
            f"Note {number}: the {number % 9}th sheep jumped over a fence.\n" * 6
        )
    return folder


def test_own_text_from_files_to_answers(notes: Path, tmp_path: Path) -> None:
    made = python(
        "-m", "megatron_prism", "run", EXAMPLES / "own_text.py", f"path={notes}", *SMALL, cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    run = tmp_path / "runs" / "own_text"
    assert f"report: {run.relative_to(tmp_path)}/report/report.html" in made.stdout
    assert "Warning" not in made.stderr
    assert (run / "export" / "hf" / "model.safetensors").is_file() or list(
        (run / "export").rglob("*.safetensors")
    )
    asked = warm.python(EXAMPLES / "ask.py", run, "train", "a sheep?", "--max-new-tokens", 4, cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("User: a sheep?\nAssistant:")
    assert "log-probability -" in asked.stdout


def test_own_text_without_text_says_so(tmp_path: Path) -> None:
    refused = warm.python("-m", "megatron_prism", "run", EXAMPLES / "own_text.py", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: path: give a file or folder")


@pytest.mark.slow
def test_convert_and_train_from_a_hugging_face_folder_and_back(notes: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "hf"
    make_checkpoint("llama", checkpoint, vocab_size=VOCABULARY)
    made = python(EXAMPLES / "convert_and_train.py", checkpoint, notes, tmp_path / "out", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "30 of 30 tensors are identical, bit for bit" in made.stdout
    # One token per character, most of them unknown to the tiny tokenizer: "Note 0:" begins with a known one.
    said = made.stdout.strip().splitlines()[-1].split()
    assert said[0] == "N"
    assert len(said) > 20
    receipt = json.loads((tmp_path / "out/train/receipt.json").read_text())
    assert receipt["world_size"] == 2
    assert receipt["config"]["parallel"]["tensor_model_parallel_size"] == 2
    assert receipt["metrics"]["steps"] == 2
    exported = tmp_path / "out/export/model"
    assert (exported / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
