"""Control groups: real ones if this process may create them, and the files of version 2 in an imitated tree."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from megatron_prism.verification.sandbox.cgroup import MOUNTS, PREFIX, ControlGroup, sweep


@pytest.fixture
def group():
    try:
        made = ControlGroup(64 << 20, 8)
    except OSError as reason:
        pytest.skip(f"no control groups can be made here: {reason}")
    yield made
    made.remove()


def run_inside(group, program):
    enter = "".join(f"open({path!r}, 'w').write(str(os.getpid()))\n" for path in group.entrances)
    return subprocess.run(
        [sys.executable, "-c", f"import os\n{enter}{program}"], capture_output=True, text=True
    )


def test_memory_and_processes_of_all_together_are_bounded(group):
    assert run_inside(group, "x = b'x' * (16 << 20)").returncode == 0
    assert group.memory_kills() == 0
    assert run_inside(group, "x = b'x' * (200 << 20)").returncode == -9
    assert group.memory_kills() >= 1
    forks = "for _ in range(20):\n    if os.fork() == 0:\n        import time; time.sleep(1); os._exit(0)\n"
    assert "BlockingIOError" in run_inside(group, forks).stderr


def test_it_goes_and_what_a_killed_process_left_is_swept(group):
    folders = list(group.folders)
    assert folders
    group.remove()
    assert not any(folder.exists() for folder in folders)
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    stale = folders[0].with_name(f"{PREFIX}{int(done.stdout)}-0")
    mine = folders[0].with_name(f"{PREFIX}{os.getpid()}-99")
    stale.mkdir()
    mine.mkdir()
    sweep(MOUNTS)
    assert (stale.exists(), mine.exists()) == (False, True)
    mine.rmdir()


def unified(root, available="memory pids"):
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "cgroup.subtree_control").write_text(available)
    return root


def test_version_2_has_one_folder_with_all_limits(tmp_path):
    made = ControlGroup(1 << 20, 8, unified(tmp_path))
    (folder,) = made.folders
    assert made.version == 2
    assert folder.parent == tmp_path
    assert made.entrances == [str(folder / "cgroup.procs")]
    assert made.memory_kills() == 0
    (folder / "memory.events").write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert made.memory_kills() == 3
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert (written["memory.max"], written["pids.max"]) == (str(1 << 20), "8")


def test_where_controllers_cannot_be_used_there_is_no_group(tmp_path):
    root = unified(tmp_path, available="cpu")
    (root / "cgroup.subtree_control").unlink()
    with pytest.raises(OSError, match="no control group"):
        ControlGroup(1 << 20, 8, root)
    with pytest.raises(OSError, match="memory"):
        ControlGroup(1 << 20, 8, tmp_path / "nothing")
