"""Log lines of launched workers appear in the launcher: each line once, complete, including the last ones."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from megatron_prism.pipeline.log_relay import relay_lines, show_lines


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("megatron_prism"), "propagate", True)
    caplog.set_level(logging.INFO, logger="megatron_prism")
    return caplog


def test_each_line_is_shown_once_with_its_level(tmp_path: Path, shown: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lines-1.jsonl").write_text('[30, "slow disk, 100% full"]\n[20, "two\\nlines"]\n[20, "half')
    with show_lines(tmp_path):
        (tmp_path / "lines-0.jsonl").write_text('[20, "first"]\n')
    said = [(record.levelname, record.getMessage()) for record in shown.records]
    assert sorted(said) == [("INFO", "first"), ("INFO", "two\nlines"), ("WARNING", "slow disk, 100% full")]


def test_a_worker_leaves_this_packages_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(logging.getLogger("megatron_prism"), "level", logging.INFO)
    with relay_lines(tmp_path):
        logging.getLogger("megatron_prism.training").info("step %d", 1)
        logging.getLogger("megatron.core").error("not ours")
    logging.getLogger("megatron_prism.training").info("after")
    assert (tmp_path / "lines-3.jsonl").read_text() == '[20, "step 1"]\n'
