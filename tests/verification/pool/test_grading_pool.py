from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.verification.pool.grading_pool import GradingPool

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with GradingPool("hostile_grader", workers=2, timeout_seconds=1.0, memory_mib=400) as made:
        yield made


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_results_come_in_the_order_of_the_tasks(pool):
    tasks = [{"do": "sleep", "seconds": 0.02 * (5 - i), "value": i} for i in range(5)]
    finished = []
    assert [r["value"] for r in pool.map(tasks, finished.append)] == list(range(5))
    assert finished == [1] * 5


def test_no_tasks_start_no_process(pool):
    assert pool.map([]) == []
    assert pool.pids() == []


def test_a_hang_costs_one_time_limit_and_the_others_go_on(pool):
    hangs = ["power", "loop", "regex", "sleep"]
    start = time.monotonic()
    results = pool.map([task for do in hangs for task in ({"do": do}, {"do": "ok", "value": do})])
    assert results[::2] == [{"failed": "timeout"}] * 4
    assert [result.get("value") for result in results[1::2]] == hangs
    # Two limits for each worker; without the limit "sleep" takes a minute and the others for ever.
    assert time.monotonic() - start < 40


@pytest.mark.parametrize(
    ("do", "reason"), [("hog", "memory"), ("die", "crashed"), ("raise", "error: KeyError")]
)
def test_a_broken_task_is_named_and_the_pool_recovers(pool, do, reason):
    results = pool.map([{"do": do}, {"do": "ok", "value": 7}] * 2)
    assert [r.get("failed") for r in results[::2]] == [reason] * 2
    assert [r.get("value") for r in results[1::2]] == [7, 7]


def test_a_worker_that_was_killed_is_replaced_and_reaped(pool):
    before = pool.map([{"do": "ok"}] * 2)
    os.kill(before[0]["pid"], 9)
    assert [r["value"] for r in pool.map([{"do": "ok", "value": i} for i in range(6)])] == list(range(6))
    assert all(p.status() != psutil.STATUS_ZOMBIE for p in psutil.Process().children())


def test_what_a_task_prints_does_not_reach_the_frames(pool):
    assert [r["value"] for r in pool.map([{"do": "print", "value": 5}, {"do": "ok", "value": 6}])] == [5, 6]


def test_preparation_is_not_timed(pool):
    assert pool.map([{"do": "slow import", "value": 1}]) == [{"value": 1, "pid": pool.pids()[0]}]


def test_large_and_odd_text_survives_the_pipe(pool):
    text = "é\ud800\x00\n" * 300_000
    assert pool.map([{"do": "ok", "value": text}])[0]["value"] == text


def test_close_leaves_no_process(new_children, pool):
    pids = [r["pid"] for r in pool.map([{"do": "sleep", "seconds": 0.1}] * 2)]
    assert len(set(pids)) == 2
    assert set(pids) <= new_children()
    pool.close()
    assert gone(pids)
    assert not new_children()


def test_an_interrupted_map_leaves_no_process(new_children, pool):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.map([{"do": "ok"}, {"do": "sleep"}], interrupt)
    assert pool.pids() == []
    assert not new_children()


@pytest.mark.parametrize("do", ["ok", "sleep"])
def test_workers_end_when_the_parent_is_killed(do):
    script = (
        "import os, sys, threading, time\n"
        "from megatron_prism.verification.pool.grading_pool import GradingPool\n"
        "pool = GradingPool('hostile_grader', timeout_seconds=5)\n"
        "pool.map([{'do': 'ok'}])\n"
        "print(pool.pids()[0], flush=True)\n"
        f"pool.map([{{'do': {do!r}, 'seconds': 1.0}}])\n"
        "time.sleep(60)\n"
    )
    path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone([pid])


def test_workers_import_no_torch_and_not_the_users_script(tmp_path):
    script = tmp_path / "user_script.py"
    script.write_text(
        "print('main script')\n"
        "import sys\n"
        "from megatron_prism.verification.grade import GradeItem, grade_all\n"
        "from megatron_prism.verification.settings import GradingSettings\n"
        "with GradingSettings(workers=1).open_pool() as pool:\n"
        "    print(grade_all([GradeItem('math', r'\\boxed{1/2}', '0.5')], pool)[0].correct)\n"
        "    import psutil\n"
        "    maps = {m.path for m in psutil.Process(pool.pids()[0]).memory_maps()}\n"
        "    print(any('torch' in m for m in maps), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split("\n")[:3] == ["main script", "True", "False False"], done.stderr


def test_a_grader_that_cannot_be_imported_is_a_bug_not_an_endless_loop():
    with (
        GradingPool("no_such_module") as pool,
        pytest.raises(RuntimeError, match="before their task starts"),
    ):
        pool.map([{"do": "ok"}])


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout_seconds": 0}, {"memory_mib": -1}])
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GradingPool("hostile_grader", **wrong)
