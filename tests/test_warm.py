"""Forked children are separate processes: exit code, output, environment, kill, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import warm


def test_a_program_has_exit_code_output_and_folder(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys\nprint(os.getcwd(), sys.argv[1], os.environ['WORD'])\n"
        "print('said', file=sys.stderr)\nsys.exit(3)\n"
    )
    done = warm.python("program.py", "one", cwd=tmp_path, environment={"WORD": "word"})
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{tmp_path} one word\n", "said\n")
    assert "WORD" not in os.environ


def _imported() -> None:
    # Importing Megatron would take longer than this.
    assert time.process_time() < 1
    assert "megatron.core" in sys.modules


def test_a_child_begins_with_everything_imported() -> None:
    child = warm.Child(_imported)
    assert child.wait(60) == 0, child.stderr


def _meet(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    met = torch.ones(1)
    dist.all_reduce(met)
    (folder / os.environ["RANK"]).write_text(f"{int(met)} of {os.environ['WORLD_SIZE']}")


def test_ranks_meet(tmp_path: Path) -> None:
    warm.ranks(_meet, tmp_path, world=3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["3 of 3"] * 3


def _one_fails() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("shard-7 is truncated")
    time.sleep(300)


def test_a_rank_that_fails_fails_all_with_its_words() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 1 ended with 1:(.|\n)*shard-7 is truncated"):
        warm.ranks(_one_fails, world=2)
    assert time.monotonic() - began < 60


def test_ranks_past_the_timeout_are_killed() -> None:
    with pytest.raises(AssertionError, match="ranks still running at the timeout"):
        warm.ranks(time.sleep, 300, world=2, timeout=3)


STARTS_AND_DIES = """
import os, signal, subprocess, time, warm
from multiprocessing import forkserver

def sleep():
    started = subprocess.Popen(["sleep", "300"])
    with open("started.partial", "w") as file:
        file.write(str(started.pid))
    os.rename("started.partial", "started")
    time.sleep(300)

if __name__ == "__main__":
    # Without the imports, because only processes matter here.
    warm._context.set_forkserver_preload(["warm_end"])
    child = warm.Child(sleep)
    while not os.path.exists("started"):
        time.sleep(0.01)
    print(open("started").read(), child.process.pid, forkserver._forkserver._forkserver_pid, flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_children_and_server_end_with_who_started_them(end: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(STARTS_AND_DIES.format(end=end))
    tests = Path(warm.__file__).parent
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "still there 20 s later"
        time.sleep(0.05)
