from __future__ import annotations

from pathlib import Path

import pytest
from toy_stages import AllReduce, Write

from megatron_prism.errors import StageFailed
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.worker_task import run_task, write_task


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Workers can import the toy stages, and do not need the environment's programs on PATH."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def test_two_processes_reduce_and_leave_only_outputs(
    importable: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = Graph("g")
    graph.add("sum", AllReduce())
    made = graph.run(importable / "run")["sum"]
    assert made.metrics == {"total": 3, "world": 2}
    assert made.receipt.world_size == 2
    assert [output.path for output in made.receipt.outputs] == ["total.txt"]
    # Torchrun does not print to the terminal, and stdout is for results.
    assert capfd.readouterr() == ("", "")


def test_a_failed_worker_fails_the_stage_with_its_words(importable: Path) -> None:
    graph = Graph("g")
    node = graph.add("sum", AllReduce(failing_rank=1))
    with pytest.raises(StageFailed, match=r"2 processes: shard-7\.bin: truncated"):
        graph.run(importable / "run")
    assert not node.folder(importable / "run").exists()


def test_a_task_file_carries_config_and_inputs(tmp_path: Path) -> None:
    graph = Graph("g")
    graph.add("a", Write("a"))
    before = graph.run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    task = write_task(Write("b", repeats=2), {"left": before["a"]}, out)
    run_task(task)
    assert (out / "sub" / "text.txt").read_text() == "abb"


def test_a_worker_leaves_its_error_for_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    graph = Graph("g")
    graph.add("a", Write("a"))
    made = graph.run(tmp_path / "run")["a"]
    task = write_task(Write("b"), {"left": made}, tmp_path)
    (made.path / "receipt.json").unlink()
    with pytest.raises(SystemExit) as caught:
        run_task(task)
    assert caught.value.code == 2
    assert "incomplete" in (task.parent / "error-3.json").read_text()
