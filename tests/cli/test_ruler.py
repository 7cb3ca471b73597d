"""`prism ruler` as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import one_line_error, prism
from tiny_models import make_checkpoint

from megatron_prism.data.ruler.samples import read_samples
from megatron_prism.data.ruler.tasks import NOISE
from megatron_prism.data.ruler.word_lists import NOUNS
from megatron_prism.data.tokenizer import train_tokenizer

TASKS = "needle_single,needle_multikey"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(
        "llama", tmp_path_factory.mktemp("hf") / "m", vocab_size=300, max_position_embeddings=256
    )
    train_tokenizer([f"{NOISE} {noun} 123. Which number goes with {noun}?" for noun in NOUNS], 300, folder)
    return folder


@pytest.fixture
def samples(hf: Path, tmp_path: Path) -> Path:
    out = tmp_path / "samples"
    options = ("--tasks", TASKS, "--lengths", "256", "--samples", "4", "--workers", "1")
    assert prism("ruler", "make", str(out), "--tokenizer", str(hf), *options) == 0
    return out


def test_make_and_score_predictions(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"task": task, "length": 256, "index": each.index, "prediction": each.answers[0]}
        for task in TASKS.split(",")
        for each in read_samples(samples, task, 256)
    ]
    file, scores = tmp_path / "predictions.jsonl", tmp_path / "scores.json"
    file.write_text("\n".join(map(json.dumps, lines)))
    capsys.readouterr()
    assert prism("ruler", "score", str(samples), "--predictions", str(file), "--json", str(scores)) == 0
    shown = capsys.readouterr().out
    assert "needle_multikey" in shown
    assert "100.0" in shown
    assert json.loads(scores.read_text())["lengths"]["256"]["recall"] == 1.0


def test_stand_ins_are_said(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--tasks", "niah_single_2", "--lengths", "1024", "--samples", "1", "--workers", "1")
    assert prism("ruler", "make", str(tmp_path / "out"), "--tokenizer", str(hf), *options) == 0
    assert "tasks made from text of this machine instead of RULER's: niah_single_2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--tasks", "niah"), "unknown task 'niah'"),
        (("--lengths", "8k"), "'8k' is not a number of tokens"),
        (("--lengths", "16"), "length 16: too short"),
        (("--lengths", "9" * 5000), "is not a number of tokens"),
        (("--lengths", "999999999999"), "length=999999999999: at most"),
        (("--samples", "0"), "--samples 0"),
        (("--samples", "9" * 30), "--samples 9"),
        (("--seed", "-1"), "--seed -1"),
        (("--workers", "0"), "--workers 0"),
        (("--tokenizer", "absent"), "tokenizer.json: missing"),
        (("--tasks", "niah_single_2", "--essays", "absent"), "absent: no such file"),
        (("--tasks", "qa_1", "--squad", "absent"), "absent: no such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: tuple[str, ...], named: str, hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options = {
        "--tokenizer": str(hf),
        "--tasks": "needle_single",
        "--lengths": "256",
        "--samples": "2",
    } | given
    filled = [part for pair in options.items() for part in pair]
    assert prism("ruler", "make", str(tmp_path / "out"), *filled) == 2
    assert named in one_line_error(capsys)
    assert not list(tmp_path.iterdir())


def test_score_wants_predictions(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert prism("ruler", "score", str(samples)) == 2
    assert "--predictions" in one_line_error(capsys)
    assert prism("ruler", "score", str(tmp_path), "--predictions", "absent") == 2
    assert "ruler.json: no such file" in one_line_error(capsys)
