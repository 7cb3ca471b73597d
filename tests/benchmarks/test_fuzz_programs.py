"""A small sample of the fuzzed programs; the benchmark runs thousands."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from megatron_prism.verification.settings import GradingSettings

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("fuzz_programs")


def test_every_completion_gets_a_verdict(fuzz) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed: apt-get install bubblewrap")
    items = fuzz.fuzzed(seed=7, items=120)
    assert items == fuzz.fuzzed(seed=7, items=120)
    result = fuzz.run(items, GradingSettings(workers=1, timeout_seconds=0.5, memory_mib=512))
    assert (result["lost"], result["without_reason"], result["errors"], result["inconsistent"]) == (
        0,
        0,
        [],
        0,
    )
    assert result["seconds"] < result["seconds_allowed"]
    # The sample reaches more than the search for fences.
    assert len(result["reasons"]) >= 5
