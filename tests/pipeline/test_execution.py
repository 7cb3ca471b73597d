"""Graphs in real worker processes: parallel stages, what is kept after a failure, and when workers end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from toy_stages import AllReduce, Break, FailOnce, Meet, Write

from megatron_prism.errors import ArtifactError, ConfigError, DataError, StageFailed
from megatron_prism.pipeline.artifact_lock import artifact_lock
from megatron_prism.pipeline.execution import Observer
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.pool_worker import StageBug


def two_that_meet(folder: Path, seconds: float = 20.0) -> Graph:
    graph = Graph("meeting", jobs=2)
    graph.add("left", Meet("left", "right", str(folder), seconds))
    graph.add("right", Meet("right", "left", str(folder), seconds))
    return graph


def test_independent_stages_run_at_the_same_time(tmp_path: Path) -> None:
    lines = []

    class Lines(Observer):
        def logged(self, name: str, text: str) -> None:
            lines.append((name, text))

    made = two_that_meet(tmp_path).run(tmp_path / "run", observer=Lines())
    pids = {artifact.metrics["process"] for artifact in made.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert sorted(lines) == [("left", "left is here"), ("right", "right is here")]


def test_in_turn_they_would_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="right did not come"):
        two_that_meet(tmp_path, seconds=0.1).run(tmp_path / "run", jobs=1)


def test_the_artifacts_are_those_of_a_run_in_turn(tmp_path: Path) -> None:
    def graph() -> Graph:
        made = Graph("diamond")
        a = made.add("a", Write("a"))
        b, c = made.add("b", Write("b"), left=a), made.add("c", Write("c"), left=a)
        made.add("d", Write("d"), left=b, right=c)
        # The same stage as b with another name: it runs once.
        made.add("e", Write("b"), left=a)
        made.add("pair", AllReduce())
        return made

    together = graph().run(tmp_path / "together", jobs=2)
    one_by_one = graph().run(tmp_path / "turn", target="e", jobs=1)
    assert list(together) == ["a", "b", "c", "d", "e", "pair"]
    for name, artifact in one_by_one.items():
        assert together[name].fingerprint == artifact.fingerprint
        assert together[name].receipt.outputs == artifact.receipt.outputs
    assert together["e"].path == together["b"].path
    assert together["pair"].metrics == {"total": 3, "world": 2}
    again = graph().run(tmp_path / "together", jobs=2)
    assert {n: a.receipt.started for n, a in again.items()} == {
        n: a.receipt.started for n, a in together.items()
    }


def test_when_one_fails_the_other_ends_and_nothing_else_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_BLOCK", str(tmp_path))
    graph = Graph("failing", jobs=2)
    graph.add("fails", FailOnce())
    graph.add("beside", Meet("me", "other", str(tmp_path)))
    # It only needs a free process, which exists once the first stage has failed.
    graph.add("after", Write("x"))
    failures = []

    class Failures(Observer):
        def failed(self, node, problem, running) -> None:
            failures.append((node.name, str(problem)))
            (tmp_path / "other").touch()

    with pytest.raises(DataError, match=r"blocked\.jsonl: empty"):
        graph.run(tmp_path / "run", observer=Failures())
    assert failures == [("fails", "blocked.jsonl: empty")]
    assert (tmp_path / "run" / "beside" / "receipt.json").is_file()
    assert not (tmp_path / "run" / "after").exists()
    monkeypatch.setenv("TOY_BLOCK", str(tmp_path / "gone"))
    assert set(graph.run(tmp_path / "run")) == {"fails", "beside", "after"}


@pytest.mark.parametrize(
    ("stage", "kind", "words"),
    [
        (Break("bug"), StageBug, "in run\n.*ZeroDivisionError: a mistake in the code"),
        (Break("disk"), DataError, "stage 'it': the disk of .* is full"),
        (
            Break("die"),
            StageFailed,
            r"stage 'it': its worker process crashed or was killed \(exit code -9\)",
        ),
        # The other rank waits in a collective and must be ended before that times out.
        (AllReduce(failing_rank=1), DataError, r"shard-7\.bin: truncated"),
    ],
)
def test_what_went_wrong_is_told(stage, kind, words, tmp_path: Path) -> None:
    graph = Graph("broken", jobs=2)
    graph.add("it", stage)
    began = time.monotonic()
    with pytest.raises(kind, match=f"(?s){words}"):
        graph.run(tmp_path / "run")
    assert time.monotonic() - began < 60


def test_a_stage_class_out_of_reach_of_workers_is_refused(tmp_path: Path) -> None:
    class Local(Write):
        pass

    graph = Graph("local", jobs=2)
    graph.add("it", Local())
    with pytest.raises(ConfigError, match=r"stage 'it': a worker process cannot import its class .*Local"):
        graph.run(tmp_path / "run")


def test_a_second_run_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    graph = Graph("busy", jobs=2)
    node = graph.add("it", Write())
    (tmp_path / "artifacts").mkdir()
    with (
        artifact_lock(node.folder(tmp_path)),
        pytest.raises(ArtifactError, match=rf"process {os.getpid()} on .* is writing this artifact"),
    ):
        graph.run(tmp_path)


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; from test_execution import two_that_meet\n"
        "if __name__ == '__main__':\n"
        "    graph = two_that_meet(Path(sys.argv[3]), 120.0)\n"
        "    graph.node('left').stage.other = graph.node('right').stage.other = 'nobody'\n"
        "    graph.run(Path(sys.argv[3]) / 'run')\n"
    )
    here = Path(__file__)
    (tmp_path / "main.py").write_text(script)
    paths = [str(here.parents[2]), str(here.parent), str(tmp_path)]
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), *paths])
    end = time.monotonic() + 60
    while not ((tmp_path / "left").exists() and (tmp_path / "right").exists()):
        assert time.monotonic() < end
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
