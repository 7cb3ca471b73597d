"""Signals to a run are passed on to its stages, nothing is sealed, and stages that lose a process start again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import warm
from toy_stages import Patient, Vanish, Write

from megatron_prism.cli import main
from megatron_prism.errors import REQUEUE_EXIT, Requeue, WorkerLost
from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform import stop_signals


def graph(*stages) -> Graph:
    made = Graph("g")
    before = None
    for number, stage in enumerate(stages):
        before = made.add(f"s{number}", stage, **({} if before is None else {"left": before}))
    return made


def program(run_dir: Path, jobs: int, stage) -> None:
    """What `prism run` does, in a child process."""
    made = graph(stage)
    try:
        with stop_signals.handled():
            made.run(run_dir, jobs=jobs)
    except Requeue as stopped:
        print(stopped)
        os._exit(REQUEUE_EXIT)


def wait_for(file: Path, child: warm.Child, rank: int = 0) -> None:
    file = file.with_name(f"{file.name}{rank}")
    deadline = time.monotonic() + 60
    while not file.exists():
        assert child.exitcode is None, child.stderr
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stage_that_can_stop_saves_and_the_run_asks_to_be_requeued(number, jobs, tmp_path):
    mark = tmp_path / "started"
    child = warm.Child(program, tmp_path / "run", jobs, Patient(mark=str(mark)))
    wait_for(mark, child)
    os.kill(child.process.pid, number)
    assert child.wait(30) == REQUEUE_EXIT, child.stderr
    assert "saved" in child.stdout
    (partial,) = (tmp_path / "run" / "artifacts").glob("patient-*.partial")
    assert (partial / "saved").exists()
    assert not (tmp_path / "run" / "s0").exists()
    child.wait_for_descendants(10)
    # The same command goes on.
    made = graph(Patient(mark=str(mark))).run(tmp_path / "run", jobs=1)["s0"]
    assert made.metrics == {"continued": True}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stage_that_cannot_stop_ends_at_once(jobs, tmp_path):
    mark = tmp_path / "started"
    child = warm.Child(program, tmp_path / "run", jobs, Patient(mark=str(mark), deaf=True))
    wait_for(mark, child)
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait(10) == REQUEUE_EXIT, child.stderr
    child.wait_for_descendants(10)


def test_a_second_signal_ends_it_at_once(tmp_path):
    mark = tmp_path / "started"
    child = warm.Child(program, tmp_path / "run", 2, Patient(mark=str(mark), seconds_to_save=60.0))
    wait_for(mark, child)
    os.kill(child.process.pid, signal.SIGUSR1)
    wait_for(tmp_path / "saving", child)
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM
    child.wait_for_descendants(10)


def test_a_lost_process_ends_the_stage_and_the_launcher_starts_it_again(tmp_path, caplog):
    with pytest.raises(WorkerLost, match="exit code -9"):
        graph(Vanish(times=1, mark=str(tmp_path / "a"))).run(tmp_path / "once", jobs=2)
    made = graph(Vanish(times=2, mark=str(tmp_path / "b"))).run(tmp_path / "twice", jobs=2, max_restarts=2)
    assert made["s0"].metrics == {"attempt": 3}
    assert len(made["s0"].receipt.attempts) == 3
    assert [message for message in caplog.messages if "starts again" in message][1].startswith(
        "stage 's0' starts again (2 of 2): stage 's0': its worker process crashed or was killed"
    )


def test_two_ranks_of_which_one_is_killed(tmp_path):
    began = time.monotonic()
    made = graph(Vanish(times=1, mark=str(tmp_path / "m"), processes=2)).run(
        tmp_path / "run", jobs=2, max_restarts=1
    )
    assert made["s0"].metrics == {"attempt": 2}
    assert time.monotonic() - began < 60


def test_no_stage_starts_after_a_signal(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    monkeypatch.setattr(stop_signals._State, "received", "SIGTERM")
    with pytest.raises(Requeue):
        graph(Write("a"), Write("b")).run(tmp_path / "run", jobs=1)
    assert not log.exists()


def test_through_torchrun(tmp_path, monkeypatch):
    """Torchrun and its launcher: a request, a lost rank that is started again, and no process left."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    mark = tmp_path / "started"
    child = warm.Child(program, tmp_path / "run", 1, Patient(mark=str(mark), processes=2))
    for rank in range(2):
        wait_for(mark, child, rank)
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait(60) == REQUEUE_EXIT, child.stderr
    assert list((tmp_path / "run" / "artifacts").glob("patient-*.partial/saved"))
    child.wait_for_descendants(20)


def test_the_command_line_ends_with_the_code_to_requeue(monkeypatch, capsys):
    def stop(*arguments, **named):
        raise Requeue("stage 'train': stopped after step 3 of 9")

    monkeypatch.setattr(main, "app", stop)
    with pytest.raises(SystemExit) as ended:
        main.main(["run", "shoebox"])
    assert ended.value.code == REQUEUE_EXIT == os.EX_TEMPFAIL
    assert capsys.readouterr().err == "stage 'train': stopped after step 3 of 9\n"


@pytest.mark.slow
def test_torchrun_ends_the_ranks_that_wait_for_a_lost_one(tmp_path, monkeypatch):
    """The other rank ignores SIGTERM, as one that waits in a collective would; torchrun kills it after 30 s."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    began = time.monotonic()
    made = graph(Vanish(times=1, mark=str(tmp_path / "m"), processes=2)).run(
        tmp_path / "run", jobs=1, max_restarts=1
    )
    assert made["s0"].metrics == {"attempt": 2}
    assert len(made["s0"].receipt.attempts) == 2
    assert time.monotonic() - began < 120
