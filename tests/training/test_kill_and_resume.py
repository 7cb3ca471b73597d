"""A run of the command line is killed in the middle of training; the same command resumes it and loses nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[2]
STEPS = 14
KILL_AFTER = 8
SETTINGS = (
    "model=hybrid", "vocab_size=265", f"steps={STEPS}", "train.checkpoint_every=3", "train.log_every=1",
    "train.architecture.hidden_size=32", "train.architecture.ffn_hidden_size=48", "train.architecture.head_dim=8",
    "train.architecture.mamba_head_dim=8", "train.architecture.mamba_state_dim=8", "train.batch.sequence_length=32",
    "train.batch.micro_batch_size=2", "train.batch.global_batch_size=4", "train.validate_every=5",
)  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [
        {"text": f"Line {number}: {number % 7} sheep jump over {number % 5} fences."} for number in range(400)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(texts: Path, run_dir: Path) -> list[str]:
    recipe = str(ROOT / "examples" / "own_text.py")
    prism = ["-m", "megatron_prism"]
    return [*prism, "run", f"{recipe}:train", f"path={texts}", *SETTINGS, "--run-dir", str(run_dir)]


def records(folder: Path) -> list[dict]:
    keys = ("step", "loss", "grad_norm", "lr", "consumed_tokens", "validation")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in keys if key in line} for line in lines]


def test_a_killed_run_goes_on_bit_for_bit(texts: Path, tmp_path: Path) -> None:
    unbroken = warm.python(*command(texts, tmp_path / "whole"), cwd=ROOT)
    assert unbroken.returncode == 0, unbroken.stderr
    expected = records(tmp_path / "whole" / "train")
    assert [line["step"] for line in expected if "loss" in line] == list(range(1, STEPS + 1))

    broken = tmp_path / "broken"
    process = warm.Child(warm.run_program, *command(texts, broken), cwd=ROOT)
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            written = [path for path in broken.glob("artifacts/train-*.partial/metrics.jsonl")]
            if written and len(written[0].read_text().splitlines()) >= KILL_AFTER:
                break
            assert process.exitcode is None, "ended before it could be killed"
            time.sleep(0.02)
    finally:
        process.kill()
    assert not (broken / "train").exists(), "nothing stands under the final name"

    resumed = warm.python(*command(texts, broken), cwd=ROOT)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 1/" not in resumed.stderr, "it began anew"
    assert f"step {STEPS}/" in resumed.stderr
    assert "corpus: skipped" in resumed.stderr
    assert records(broken / "train") == expected
    assert not list(broken.glob("artifacts/*.partial"))
