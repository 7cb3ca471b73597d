"""`prism run` on two processes: one is killed and the stage starts again; a signal ends it with the code to requeue."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import warm

from megatron_prism.errors import REQUEUE_EXIT

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "vocab_size=265", "steps=14", "train.checkpoint_every=3",
    "train.architecture.hidden_size=32", "train.architecture.ffn_hidden_size=48", "train.architecture.head_dim=8",
    "train.batch.sequence_length=32", "train.batch.micro_batch_size=1", "train.batch.global_batch_size=4",
    "train.parallel.data_parallel_size=2", "--jobs", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [{"text": f"Line {n}: {n % 7} sheep jump over {n % 5} fences."} for n in range(400)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    assert warm.python(*command(texts, run_dir), cwd=ROOT).returncode == 0
    return run_dir / "train"


def command(texts: Path, run_dir: Path, *more: str) -> list[str]:
    recipe = str(ROOT / "examples" / "own_text.py")
    prism = ["-m", "megatron_prism", "run", f"{recipe}:train", f"path={texts}"]
    return [*prism, *SETTINGS, "--run-dir", str(run_dir), *more]


def start(texts: Path, run_dir: Path, *more: str) -> warm.Child:
    """A run that has made a few steps."""
    child = warm.Child(warm.run_program, *command(texts, run_dir, *more), cwd=ROOT)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        written = list(run_dir.glob("artifacts/train-*.partial/metrics.jsonl"))
        if written and len(written[0].read_text().splitlines()) >= 5:
            return child
        assert child.exitcode is None, child.stderr
        time.sleep(0.01)
    raise AssertionError("no step was made")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "grad_norm" in line]


def workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_does_not_hang_the_others_and_the_run_goes_on(texts, whole, lost, tmp_path):
    child = start(texts, tmp_path / "run", "--max-restarts", "1")
    os.kill(workers(child.process.pid)[lost], signal.SIGKILL)
    assert child.wait(100) == 0, child.stderr
    assert "stage 'train' starts again (1 of 1)" in child.stderr
    receipt = json.loads((tmp_path / "run" / "train" / "receipt.json").read_text())
    assert len(receipt["attempts"]) == 2
    assert losses(tmp_path / "run" / "train") == losses(whole)


@pytest.mark.slow
def test_without_restarts_it_ends_quickly_with_one_line(texts, tmp_path):
    child = start(texts, tmp_path / "run")
    began = time.monotonic()
    os.kill(workers(child.process.pid)[1], signal.SIGKILL)
    assert child.wait(30) == 2
    assert time.monotonic() - began < 20
    assert "its worker process crashed or was killed (exit code -9)" in child.stderr
    assert "Traceback" not in child.stderr
    child.wait_for_descendants(10)


@pytest.mark.slow
def test_a_signal_to_the_command_saves_and_means_requeue(texts, whole, tmp_path):
    child = start(texts, tmp_path / "run")
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait(60) == REQUEUE_EXIT, child.stderr
    assert "stage 'train': stopped after step" in child.stderr
    assert "of 14, because it was asked to stop; the same command goes on from there" in child.stderr
    assert not (tmp_path / "run" / "train").exists()
    child.wait_for_descendants(10)
    again = warm.python(*command(texts, tmp_path / "run"), cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert "step 1/" not in again.stderr
    assert losses(tmp_path / "run" / "train") == losses(whole)
