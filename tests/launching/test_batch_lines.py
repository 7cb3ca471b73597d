"""The lines around a stage in Slurm's batch script, run by a shell whose `scontrol` and `srun` are stand-ins."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from two_stages import recipe

from megatron_prism.launching.batch import PORTS_TRIED, STRIDE, setup_lines
from megatron_prism.launching.executor import Resources
from megatron_prism.launching.job import main as run_job
from megatron_prism.launching.job_file import write_job
from megatron_prism.launching.logs import last_error
from megatron_prism.launching.rendezvous import FIRST_PORT, PORTS, rendezvous
from megatron_prism.launching.tasks import jobs_to_submit
from megatron_prism.pipeline.node import locate

RUNNING, PREEMPTED = "JobState=RUNNING PreemptTime=None", "JobState=RUNNING PreemptTime=2026-11-29T02:43:12"
CANCELLED = "JobState=CANCELLED PreemptTime=None"
BACK = "prism: the job goes back into the queue"


def run_lines(
    lines: str, folder: Path, *, shown: str = RUNNING, nodes_answer: bool = True, **more: str
) -> str:
    """What the lines print, between nemo-run's `set +e` and `set -e`."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in {
        "scontrol": f'[ "$1" = requeue ] && exit 1; echo "JobId=7 {shown} Restarts=0"',
        "srun": f"exit {0 if nodes_answer else 1}",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", **more}
    ended = subprocess.run(
        ["bash", "-c", f"set +e\n{lines}"],
        env=environment | {"SLURM_JOB_NUM_NODES": "2"},
        capture_output=True,
        text=True,
    )
    assert ended.stderr == ""
    return ended.stdout.strip()


@pytest.mark.parametrize(
    ("code", "said", "shown", "back"),
    [
        (0, "", RUNNING, False),
        (2, "", RUNNING, False),
        (75, "75", RUNNING, True),
        # srun's code is the largest of all nodes: the others were killed when the first had ended.
        (143, "75", RUNNING, True),
        (137, "1", RUNNING, False),
        # The user has cancelled it.
        (75, "75", CANCELLED, False),
        (143, "", CANCELLED, False),
        # Another node has crashed, or met a mistake.
        (201, "75", RUNNING, False),
        (202, "75", RUNNING, False),
        # Pre-empted before anything could answer the signal; and at the moment of an end that is final.
        (138, "", PREEMPTED, True),
        (143, "1", PREEMPTED, True),
        (0, "", PREEMPTED, False),
        (2, "", PREEMPTED, False),
        # A process that was killed without a pre-emption.
        (143, "", RUNNING, False),
    ],
)
def test_what_goes_back_into_the_queue(tmp_path, code, said, shown, back):
    marker = tmp_path / "a job.again"
    marker.write_text("75\n")
    lines = setup_lines(shlex.quote(str(marker)), Resources())
    # What an earlier attempt left does not count.
    leave = f"; printf {said} > {shlex.quote(str(marker))}" if said else ""
    printed = run_lines(f"{lines}{leave}\n(exit {code}); set -e; exit {code}", tmp_path, shown=shown)
    assert (printed == BACK) == back, printed
    assert not marker.exists()


def test_a_lost_node_and_allowed_restarts(tmp_path):
    marker = tmp_path / "job.again"

    def put_back(restarts: int, *, restarted: str = "0", nodes_answer: bool = True) -> bool:
        lines = setup_lines(str(marker), Resources(restarts=restarts))
        lost = f"{lines}\necho 1 > {marker}; exit 1"
        return BACK in run_lines(lost, tmp_path, nodes_answer=nodes_answer, SLURM_RESTART_COUNT=restarted)

    assert put_back(0, nodes_answer=False)
    assert not put_back(0)
    assert put_back(2, restarted="1")
    assert not put_back(2, restarted="2")
    assert "scontrol" not in setup_lines(str(marker), Resources(requeue=False))


def test_the_users_lines_are_inside_what_puts_a_job_back(tmp_path):
    lines = setup_lines("marker", Resources(setup="module load cuda\n\nexport A=1"))
    assert lines.index("trap prism_put_back EXIT") < lines.index("module load cuda\nexport A=1")


def test_the_nodes_meet_at_a_port_that_nothing_uses(tmp_path):
    """Taken ports are passed over, whatever address of the node they belong to."""
    own = FIRST_PORT + 11_990
    lines = setup_lines("marker", Resources(), nodes=2) + '\ntrap - EXIT; echo "$PRISM_PORT"'

    def chosen() -> int:
        printed = run_lines(lines, tmp_path, SLURM_JOB_ID=str(12_000 + 11_990))
        where = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "SLURM_NNODES": "2", "PRISM_PORT": printed}
        return rendezvous(where).port

    with socket.socket() as one, socket.socket(socket.AF_INET6) as two:
        one.bind(("127.0.0.13", own))
        one.listen()
        second = FIRST_PORT + (11_990 + STRIDE) % PORTS
        assert chosen() == second
        two.bind(("::1", second))
        two.listen()
        assert chosen() == FIRST_PORT + (11_990 + 2 * STRIDE) % PORTS
    assert chosen() == own
    assert len({place * STRIDE % PORTS for place in range(PORTS_TRIED)}) == PORTS_TRIED
    assert "PRISM_PORT" not in setup_lines("marker", Resources(), nodes=1)


def test_a_port_that_is_taken_afterwards_sends_the_job_back(tmp_path, monkeypatch, capsys):
    run_dir = (tmp_path / "run").resolve()
    jobs = jobs_to_submit(locate(recipe(ranks=2).nodes.values(), run_dir), run_dir, set())
    (run_dir / "artifacts").mkdir(parents=True)
    file = write_job(jobs["one"], run_dir)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"JOB_ID": "7", "NODEID": "0", "NNODES": "2"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("PRISM_HEAD_NODE", "127.0.0.1")
        monkeypatch.setenv("PRISM_PORT", str(port))
        assert run_job(file) == 1
    said = capsys.readouterr().err
    assert f"error: port {port} of 127.0.0.1, where the nodes meet, was taken by another program" in said
    assert file.with_suffix(".again").read_text() == "75\n"


def test_a_job_that_makes_an_artifact_anew_does_not_take_the_old_one_for_its_own(tmp_path, monkeypatch):
    """Started again after a pre-emption it runs; after its artifact was made it ends at once."""
    run_dir = (tmp_path / "run").resolve()
    located = locate(recipe().nodes.values(), run_dir)
    (run_dir / "artifacts").mkdir(parents=True)
    first = write_job(jobs_to_submit(located, run_dir, set())["three"], run_dir)
    assert run_job(first) == 0
    folder = located["three"].folder

    def made() -> int:
        return (folder / "receipt.json").stat().st_mtime_ns

    before = made()
    assert run_job(first) == 0
    assert made() == before
    again = write_job(jobs_to_submit(located, run_dir, {"three"})["three"], run_dir)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run_job(again) == 0
    assert made() > before
    before = made()
    assert run_job(again) == 0
    assert made() == before


def test_the_words_of_a_stage_win_over_those_with_which_slurm_ends_the_other_nodes(tmp_path):
    log = tmp_path / "log.out"
    log.write_text(
        "error: text=refuse: this text is refused\n"
        "slurmstepd-n1: error: *** STEP 5.1 ON n1 CANCELLED AT 2026-11-29T03:42:48 ***\n"
        "srun: error: n2: task 1: Terminated\n"
    )
    assert last_error([log]) == "text=refuse: this text is refused"
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=5.1\n")
    assert last_error([log]) == "Detected 1 oom_kill event in StepId=5.1"
    log.write_text("step 3\n")
    assert last_error([log]) == ""
