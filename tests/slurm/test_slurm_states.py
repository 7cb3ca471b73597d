"""What a real Slurm says about jobs, wherever it keeps them: the queue, accounting, the controller."""

from __future__ import annotations

import pytest

from megatron_prism.errors import ServerError
from megatron_prism.launching.slurm import (
    UNKNOWN,
    _from_accounting,
    cancel_jobs,
    queued_scripts,
    read_accounting,
    slurm_jobs,
)


def test_states_of_arrays_and_of_jobs_that_have_ended(cluster, monkeypatch):
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    ended = cluster.submit("#!/bin/sh\n")
    failed = cluster.submit("#!/bin/sh\nexit 3\n")
    array = cluster.submit("#!/bin/sh\n", "--hold", "--array=0-2%1")
    cancel_jobs([f"{array}_0"])
    cluster.wait_for_state(failed, "FAILED")
    jobs = slurm_jobs([ended, failed, *(f"{array}_{place}" for place in range(3)), "999999", ""])
    assert {number: job.state for number, job in jobs.items()} == {
        ended: "COMPLETED",
        failed: "FAILED",
        # Slurm keeps no record of a task that was cancelled before it started.
        f"{array}_0": "CANCELLED",
        f"{array}_1": "PENDING",
        f"{array}_2": "PENDING",
        "999999": UNKNOWN,
    }
    assert not jobs[f"{array}_1"].has_ended
    assert array in queued_scripts().values()
    # Some have ended by now, which is no mistake.
    cancel_jobs([ended, f"{array}_0", f"{array}_1", f"{array}_2", "999999"])
    wanted = {ended: "COMPLETED", failed: "FAILED"}
    cluster.wait_for(
        lambda: {number: job.state for number, job in _from_accounting([ended, failed]).items()} == wanted,
        about="accounting",
    )


def test_a_controller_that_does_not_answer_says_nothing_about_a_job(monkeypatch, tmp_path):
    """Otherwise `prism run` would take the job for one that has ended."""
    for name in ("squeue", "sacct"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Socket timed out >&2; exit 1\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ServerError, match="Socket timed out"):
        slurm_jobs(["7"])


def test_lines_of_accounting():
    lines = [
        "12|COMPLETED|00:01:00|n1",
        "13_2|FAILED|00:01:00|n1",
        "13_[0,4-6%2]|CANCELLED by 0|00:00:00|None assigned",
        "14_[...]|PENDING|00:00:00|None assigned",
    ]
    found = read_accounting(lines, ["12", "13_0", "13_2", "13_5", "13_7", "14_1"])
    assert {number: job.state for number, job in found.items()} == {
        "12": "COMPLETED",
        "13_2": "FAILED",
        "13_0": "CANCELLED",
        "13_5": "CANCELLED",
    }
