"""The test cluster itself: two machines, signals before a pre-emption, requeue, a dead node, and no leftovers."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def test_two_machines_with_names_addresses_and_files_of_their_own(cluster):
    script = f"""#!/bin/sh
srun -N2 sh -c 'echo $(hostname) $(getent hosts $(hostname)) > {cluster.private}/mine; cat {cluster.private}/*'
"""
    number = cluster.submit(script, "-N2", "--gpus-per-node=4")
    cluster.wait_for_state(number, "COMPLETED")
    lines = sorted((cluster.root / f"{number}.out").read_text().splitlines())
    assert [line.split() for line in lines] == [["n1", "127.0.0.11", "n1"], ["n2", "127.0.0.12", "n2"]]
    assert not list(cluster.private.iterdir()), "this machine has the folder for itself, too"
    cluster.wait_for(lambda: "COMPLETED" in cluster.run("sacct", "-n", "-X", "-j", number, "-o", "state"))


@pytest.mark.slow
def test_a_lost_node_takes_its_processes_with_it_and_the_job_is_requeued(cluster):
    number = cluster.submit("#!/bin/sh\nsrun -N2 sleep 1234.5\n", "-N2", "--requeue")
    cluster.wait_for(lambda: len(sleeping("1234.5")) == 2)
    cluster.lose("n2")
    assert len(sleeping("1234.5")) == 1
    assert cluster.wait_for_state(number, "PENDING", seconds=30)["Restarts"] == "1"
    cluster.repair("n2")
    cluster.start_now(number)
    cluster.wait_for(lambda: len(sleeping("1234.5")) == 2)


def test_nothing_runs_on_after_a_session_that_was_killed():
    """Daemons, and a job that does not listen to anybody."""
    code = """
from cluster import Cluster
import os, signal
cluster = Cluster()
number = cluster.submit("#!/bin/sh\\ntrap '' TERM\\nsetsid sleep 1234.6\\n")
cluster.wait_for_state(number, "RUNNING")
print(cluster.root, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    root = done.stdout.strip()
    assert root.startswith("/tmp/prism-slurm-"), done.stderr
    shutil.rmtree(root)
    deadline = time.monotonic() + 5
    while found := [process for process in running() if root in process or "1234.6" in process]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def running() -> list[str]:
    """The command lines of the processes that run."""
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return lines


def sleeping(seconds: str) -> list[str]:
    return [line for line in running() if line.endswith(f"sleep {seconds}") and "srun" not in line]
