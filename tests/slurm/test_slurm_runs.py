"""Recipes on a real Slurm: a pre-emption, a lost node, a failing stage, a mistake, and the commands about jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_prism.cli import main as cli
from megatron_prism.launching.rendezvous import FIRST_PORT, PORTS
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.study.registry import load_recipe

STEPS = 60
HERE = Path(__file__).parent
TRAINING, NOTES = str(HERE / "tiny_training.py"), str(HERE.parent / "launching" / "two_stages.py")
EXECUTOR = """kind: slurm
account: lab
partition: batch
shared_run_dir: true
time: "00:20:00"
warn_seconds: 30
"""


class Prism:
    """`prism` as a user of the cluster types it."""

    def __init__(self, cluster, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.cluster, self.run_dir = cluster, folder / "run"
        self.file = folder / "executor.yaml"
        self.file.write_text(EXECUTOR)
        path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), *sys.path])
        self.environment = os.environ | cluster.environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "megatron_prism",
            *map(str, arguments),
            "--run-dir",
            str(self.run_dir),
        ]
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=200)
        assert ended.returncode == code, ended.stderr + ended.stdout
        return ended

    def here(self, *arguments: object) -> Any:
        """What the command writes with `--json`, in this process, which has imported everything."""
        result = self.run_dir.parent / "here.json"
        words = [*arguments, "--run-dir", self.run_dir, "--json", result]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.cluster.environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                cli.main([str(word) for word in words])
        assert not ended.value.code
        return json.loads(result.read_text())

    def submit(self, recipe: str, *arguments: object) -> dict[str, str]:
        """The numbers of the jobs, by stage."""
        result = self.run_dir.parent / "result.json"
        self("run", recipe, *arguments, "--executor", self.file, "--detach", "--json", result)
        return json.loads(result.read_text())["jobs"]


@pytest.fixture
def prism(cluster, tmp_path):
    return Prism(cluster, tmp_path)


def steps(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [record for line in lines if "loss" in (record := json.loads(line))]


def last_step(run_dir: Path) -> int:
    partial = next((run_dir / "artifacts").glob("train-*.partial"), None)
    return max((record["step"] for record in steps(partial)), default=0) if partial else 0


@pytest.mark.slow
def test_a_pre_empted_job_and_one_that_loses_a_node_finish_as_if_nothing_had_happened(
    cluster, prism, tmp_path
):
    graph = load_recipe(TRAINING).graph({})
    graph.run(prism.run_dir, target="tokens", jobs=1)
    number = prism.submit(TRAINING)["train"]
    cluster.wait_for(lambda: last_step(prism.run_dir) >= 3, about="the third step")

    urgent = cluster.submit("#!/bin/sh\nsleep 1\n", "-N2", "--partition=urgent", "--exclusive")
    cluster.wait_for_state(urgent, "COMPLETED")
    stopped_at = last_step(prism.run_dir)
    assert cluster.wait_for_state(number, "PENDING")["Restarts"] == "1"
    cluster.start_now(number)
    cluster.wait_for(lambda: last_step(prism.run_dir) >= stopped_at + 13, about="steps after the pre-emption")

    cluster.lose("n2")
    lost_at = last_step(prism.run_dir)
    cluster.wait_for_state(number, "PENDING")
    cluster.repair("n2")
    # What Slurm could not tell the lost node, it may tell it now, and so end the job once more.
    while cluster.wait_for_state(number, "PENDING", "COMPLETED", seconds=90)["JobState"] == "PENDING":
        cluster.start_now(number)

    made = Artifact.open(next((prism.run_dir / "artifacts").glob("train-*")))
    assert {attempt["world_size"] for attempt in made.receipt.attempts} == {2}
    assert len(made.receipt.attempts) in (3, 4)
    # The pre-empted attempt saved its last step; the lost node cost the steps since the last checkpoint.
    assert first_step(prism, number, 1) == stopped_at + 1
    assert first_step(prism, number, 2) == lost_at // 10 * 10 + 1 > stopped_at + 1

    # One that was never stopped; and one that forgot its place, which the comparison must not take for the same.
    unbroken = graph.run(tmp_path / "unbroken", jobs=2)["train"]
    assert losses(made.path) == losses(unbroken.path)
    assert [record["step"] for record in steps(made.path)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_job_that_reaches_its_time_limit_goes_on_from_the_step_that_it_saved(cluster, prism, tmp_path):
    graph = load_recipe(TRAINING).graph({"steps": 400})
    graph.run(prism.run_dir, target="tokens", jobs=1)
    number = prism.submit(TRAINING, "steps=400")["train"]
    cluster.wait_for(lambda: last_step(prism.run_dir) >= 3, about="the third step")
    # Slurm itself sends the signal: 30 s, and up to a minute more, before the end that is now a minute after the start.
    cluster.run("scontrol", "update", f"jobid={number}", "timelimit=1")
    assert cluster.wait_for_state(number, "PENDING", seconds=90)["Restarts"] == "1"
    stopped_at = last_step(prism.run_dir)
    assert 3 <= stopped_at < 400
    cluster.run("scontrol", "update", f"jobid={number}", "timelimit=20")
    cluster.start_now(number)
    cluster.wait_for_state(number, "COMPLETED", seconds=180)
    made = Artifact.open(next((prism.run_dir / "artifacts").glob("train-*")))
    assert len(made.receipt.attempts) == 2
    assert first_step(prism, number, 1) == stopped_at + 1
    unbroken = graph.run(tmp_path / "unbroken", jobs=2)["train"]
    assert losses(made.path) == losses(unbroken.path)
    assert len(losses(made.path)) == 400


@pytest.mark.slow
def test_a_job_that_is_pre_empted_before_its_stage_can_listen_comes_back(cluster, prism, tmp_path):
    """Its interpreter takes seconds to start; a process that ends by the same signal without a pre-emption fails."""
    slow = tmp_path / "slow-python"
    slow.write_text(f'#!/bin/sh\ntouch {tmp_path}/began\nsleep 5\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    prism.file.write_text(f"{EXECUTOR}python: {slow}\n")
    number = prism.submit(f"{NOTES}:one", "ranks=2")["one"]
    cluster.wait_for((tmp_path / "began").exists, about="the interpreter")
    cluster.submit("#!/bin/sh\n", "-N2", "--partition=urgent", "--exclusive")
    cluster.wait_for(lambda: cluster.job(number)["Restarts"] == "1", about="one restart")
    cluster.start_now(number)
    cluster.wait_for_state(number, "COMPLETED")

    (tmp_path / "began").unlink()
    number = prism.submit(f"{NOTES}:one", "ranks=2", "first=killed")["one"]
    cluster.wait_for((tmp_path / "began").exists, about="the interpreter")
    cluster.run("scancel", "--signal=TERM", number)
    assert cluster.wait_for_state(number, "FAILED")["Restarts"] == "0"


def first_step(prism: Prism, number: str, restart: int) -> int:
    """The first step that an attempt made."""
    (log,) = prism.run_dir.glob(f"launch/nemo/**/log-*_{number}_{restart}.out")
    return int(re.findall(r"step (\d+)/", log.read_text())[0])


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in steps(folder)]


def test_a_failing_stage_ends_the_run_and_nothing_is_left_in_the_queue(cluster, prism):
    """A user's mistake is not tried again."""
    ended = prism("run", NOTES, "first=refuse", "--executor", prism.file, code=2)
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: stage 'one' failed: text=refuse: this text is refused; its log is ")
    assert cluster.run("squeue", "-h") == ""
    made = [Artifact.open(path) for path in (prism.run_dir / "artifacts").glob("note-????????????")]
    assert [artifact.receipt.stage for artifact in made] == ["three"]
    jobs = {row["stage"]: row for row in prism.here("jobs")}
    assert {name: row["state"] for name, row in jobs.items()} == {
        "one": "failed",
        "two": "cancelled",
        "three": "completed",
    }
    assert cluster.job(jobs["one"]["job"])["Restarts"] == "0"
    assert "refused" in prism("logs", "one").stdout

    # Submitted once more: only what is missing, on two nodes, of which the second crashes. Slurm stops the first then,
    # which must not be taken for a pre-emption: the job would go back into the queue for ever.
    numbers = prism.submit(NOTES, "first=crash", "ranks=2")
    assert set(numbers) == {"one", "two"}
    assert cluster.wait_for_state(numbers["one"], "FAILED")["Restarts"] == "0"
    cluster.wait_for_state(numbers["two"], "CANCELLED")


@pytest.mark.slow
def test_a_crash_is_tried_again_as_often_as_the_executor_says(cluster, prism):
    prism.file.write_text(EXECUTOR + "restarts: 1\n")
    numbers = prism.submit(NOTES, "first=crash", "ranks=2")
    cluster.wait_for(lambda: cluster.job(numbers["one"])["Restarts"] == "1", about="one restart")
    cluster.start_now(numbers["one"])
    assert cluster.wait_for_state(numbers["one"], "FAILED")["Restarts"] == "1"
    cluster.wait_for_state(numbers["two"], "CANCELLED")


def test_two_jobs_of_two_nodes_at_once_have_the_time_to_save_on_every_node(cluster, prism, tmp_path):
    """They meet although their own ports are taken, come back, and what waits for them goes on waiting.

    In the meantime, an array: one failing task does not stop the others, but what waits for it.
    """
    other, notes = (Prism(cluster, tmp_path / name) for name in ("other", "notes"))
    last = int(cluster.submit("#!/bin/sh\n"))
    with taken_ports(range(last + 1, last + 6)) as taken:
        runs = [(each, each.submit(str(HERE / "slow_saving.py"))) for each in (prism, other)]
        waits = [f"artifacts/saves-*.partial/waits{rank}" for rank in range(2)]
        cluster.wait_for(
            lambda: all(list(each.run_dir.glob(file)) for each, _ in runs for file in waits),
            about="all ranks",
        )
    ports = [port_of(each) for each, _ in runs]
    assert len({*ports}) == 2
    assert not taken & {*ports}
    for _, numbers in runs:
        # What Slurm sends before the time limit.
        cluster.run("scancel", "--signal=USR1", numbers["saves"])
    for _, numbers in runs:
        cluster.wait_for(
            lambda job=numbers["saves"]: cluster.job(job)["Restarts"] == "1", about="one restart"
        )
        assert cluster.job(numbers["after"])["JobState"] == "PENDING"

    notes.file.write_text(EXECUTOR + "array: 2\n")
    submission = ("run", NOTES, "first=refuse", "--executor", notes.file)
    shown = notes.here(*submission, "--dry-run")["scripts"]
    failed = notes(*submission, code=2).stderr.splitlines()[-1]
    # What a dry run shows is, byte for byte, what sbatch got.
    sent = {
        file.name.removesuffix("_sbatch.sh"): file
        for file in notes.run_dir.glob("launch/nemo/**/*_sbatch.sh")
    }
    assert {name: text.partition("\n#!")[2] for name, text in shown.items()} == {
        name: file.read_text().removeprefix("#!") for name, file in sent.items()
    }
    assert set(sent) == {"one-array", "two"}
    assert failed.startswith("error: stage 'one' failed: text=refuse: this text is refused; its log is ")
    jobs = {row["stage"]: row for row in notes.here("jobs")}
    assert {name: row["state"] for name, row in jobs.items()} == {
        "one": "failed",
        "two": "cancelled",
        "three": "completed",
    }
    array = jobs["one"]["job"].removesuffix("_0")
    assert (jobs["three"]["job"], array.isdecimal()) == (f"{array}_1", True)

    number = runs[0][1]["saves"]
    cluster.start_now(number)
    cluster.wait_for_state(runs[0][1]["after"], "COMPLETED")
    assert len(made_by(prism, "saves").receipt.attempts) == 2


@contextmanager
def taken_ports(jobs: Iterable[int]) -> Iterator[set[int]]:
    """Another program listens on the ports that are these jobs' own."""
    with ExitStack() as held:
        ports = {FIRST_PORT + job % PORTS for job in jobs}
        for port in ports:
            server = held.enter_context(socket.socket())
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("0.0.0.0", port))
            server.listen()
        yield ports


def port_of(prism: Prism) -> int:
    """The port at which the nodes of a run's job meet, as its batch script has said."""
    (log,) = prism.run_dir.glob("launch/nemo/**/sbatch_*.saves_*.out")
    return int(re.findall(r"^\+ PRISM_PORT=(\d+)$", log.read_text(), re.MULTILINE)[-1])


def made_by(prism: Prism, kind: str) -> Artifact:
    (folder,) = (prism.run_dir / "artifacts").glob(f"{kind}-????????????")
    return Artifact.open(folder)


def test_jobs_are_seen_joined_and_cancelled(cluster, prism):
    """Cancelled ones do not come back; what sbatch refuses is said in its words, and leaves nothing behind."""
    cluster.run("scontrol", "update", "partition=batch", "state=down")
    try:
        killed = submission_killed_after_sbatch(cluster, prism, f"{NOTES}:one", "ranks=2")
        numbers = prism.submit(NOTES, "ranks=2")
        # The job that the killed one had sent is not sent again, and what needs the stage waits for it.
        assert numbers["one"] == killed
        assert cluster.job(numbers["two"])["Dependency"].startswith(f"afterok:{killed}(")
        assert len(cluster.run("squeue", "-h").splitlines()) == len(set(numbers.values())) == 3
        assert prism("cancel", "one").stdout.strip() == "cancelled: one, two"
        states = {row["stage"]: row["state"] for row in prism.here("jobs")}
        assert states == {"one": "cancelled", "two": "cancelled", "three": "pending"}
        assert prism.here("cancel") == {"cancelled": {"three": numbers["three"]}}
        assert prism.here("cancel") == {"cancelled": {}}
    finally:
        cluster.run("scontrol", "update", "partition=batch", "state=up")
    assert all(cluster.job(number)["Restarts"] == "0" for number in numbers.values())
    cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "maxsubmitjobs=1")
    try:
        refused = prism("run", NOTES, "--executor", prism.file, code=2).stderr
    finally:
        cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "maxsubmitjobs=-1")
    assert refused.splitlines()[-1].startswith("error: sbatch refused a job: AssocMaxSubmitJobLimit; ")
    cluster.wait_for(lambda: not cluster.run("squeue", "-h"), about="an empty queue")


def submission_killed_after_sbatch(cluster, prism: Prism, *arguments: str) -> str:
    """Kill `prism run` when Slurm has its only job, and it has not yet written the job's number; the number."""
    programs = prism.run_dir.parent / "programs"
    programs.mkdir()
    # It does not return after it has taken a job.
    slow = f'#!/bin/sh\n{shutil.which("sbatch")} "$@"\ncase "$*" in *test-only*) ;; *) sleep 60;; esac\n'
    (programs / "sbatch").write_text(slow)
    (programs / "sbatch").chmod(0o755)
    environment = prism.environment | {"PATH": f"{programs}{os.pathsep}{prism.environment['PATH']}"}
    command = [
        sys.executable,
        "-m",
        "megatron_prism",
        "run",
        *arguments,
        "--executor",
        str(prism.file),
        "--detach",
    ]
    running = subprocess.Popen(
        [*command, "--run-dir", str(prism.run_dir)], env=environment, start_new_session=True
    )
    number = cluster.wait_for(lambda: cluster.run("squeue", "-h", "-o", "%i"), about="the job")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    (record,) = prism.run_dir.glob("launch/submissions/*.json")
    assert json.loads(record.read_text())["tasks"]["one"]["job"] == ""
    return number
