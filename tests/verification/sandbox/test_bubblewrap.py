"""The strong mode against hostile programs: none gets a correct verdict, does harm, hangs, or leaves traces."""

from __future__ import annotations

import json
import os
import site
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hostile_programs import (
    AGAINST_STATEMENTS,
    ATTACKS,
    FORGERY,
    GOOD,
    GOOD_SCRIPT,
    MAY_REPLACE,
    READING_FORGERY,
    REAL_WITHOUT_A_SANDBOX,
    SCRIPT_ATTACKS,
    SCRIPT_TESTS,
    TESTS,
)

from megatron_prism.platform.source_tree import ROOT
from megatron_prism.verification.sandbox import bubblewrap as bubblewrap_module
from megatron_prism.verification.sandbox.bubblewrap import Sandbox, SandboxError
from megatron_prism.verification.sandbox.cgroup import MOUNTS, PREFIX
from megatron_prism.verification.sandbox.isolation import run_tests
from megatron_prism.verification.sandbox.judge import Limits
from megatron_prism.verification.sandbox.weak_runner import WeakRunner
from megatron_prism.verification.settings import GradingSettings

MEMORY_MIB = 256
# A program with a correct `f` gets enough time to pass; the others can only be stopped.
PATIENT_SECONDS, SHORT_SECONDS = 60.0, 0.5
STATEMENTS = ["assert not f(2) != 4", "assert abs(f(-3) - 9) < 1e-9"]
CLEAN = "import os\nassert os.listdir('/tmp') == ['solution.py'], os.listdir('/tmp')\n"


@pytest.fixture(scope="module")
def sandbox(bubblewrap):
    with Sandbox(MEMORY_MIB) as made:
        yield made


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Targets on this machine: a file, its folder, two listening sockets, the environment."""
    folder = tmp_path_factory.mktemp("checkpoint")
    secret = folder / "secret.txt"
    secret.write_text("precious")
    # Readable for every user, so that file permissions are not what protects it.
    for path in (secret, *secret.parents[:3]):
        path.chmod(path.stat().st_mode | 0o755)
    os.environ["SECRET"] = "s3cret"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0prism-test-{os.getpid()}")
        abstract.listen()
        yield {
            **{"secret": str(secret), "folder": str(folder), "host": os.getpid()},
            **{"port": server.getsockname()[1], "paths": [*site.getsitepackages(), *sys.path]},
        }
    del os.environ["SECRET"]
    assert secret.read_text() == "precious"
    assert os.listdir(folder) == ["secret.txt"]


def verdict(runner, program, tests=TESTS, seconds=PATIENT_SECONDS):
    return run_tests(program, tests, Limits(seconds, MEMORY_MIB), runner=runner).reason


def inside(sandbox) -> list[int]:
    """The ids of all processes in the sandbox, including its first process."""
    return [child.pid for child in psutil.Process(sandbox._process.pid).children(recursive=True)]


def attack(sandbox, program, tests, seconds=PATIENT_SECONDS):
    """Run it between two harmless programs: the second must not be affected by it."""
    assert verdict(sandbox, CLEAN + GOOD, TESTS) == "correct"
    sandbox.open()
    descriptors, before = len(os.listdir("/proc/self/fd")), sandbox._first_process
    started = time.monotonic()
    reason = verdict(sandbox, program, tests, seconds)
    assert time.monotonic() - started < seconds + 2 * bubblewrap_module.CLEAN_SECONDS
    if sandbox._process is not None:
        assert inside(sandbox) == [sandbox._first_process]
    assert verdict(sandbox, CLEAN + GOOD, TESTS) == "correct"
    assert len(os.listdir("/proc/self/fd")) == descriptors
    return reason, sandbox._first_process == before


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_wins_nothing_and_leaves_nothing(sandbox, host, name):
    program = ATTACKS[name].format(**host)
    seconds = PATIENT_SECONDS if "def f" in program else SHORT_SECONDS
    reason, survived = attack(sandbox, program, TESTS, seconds)
    assert reason != "correct"
    assert survived or name in MAY_REPLACE


@pytest.mark.parametrize("name", SCRIPT_ATTACKS)
def test_a_script_wins_nothing_and_leaves_nothing(sandbox, name):
    reason, survived = attack(sandbox, SCRIPT_ATTACKS[name], SCRIPT_TESTS, 2.0)
    assert reason != "correct"
    assert survived


@pytest.mark.parametrize("name", AGAINST_STATEMENTS)
def test_statements_beside_the_program_are_not_won_by_accident(sandbox, host, name):
    program = ATTACKS[name].format(**host)
    assert attack(sandbox, program, STATEMENTS)[0] != "correct"


def test_what_remains_possible_and_what_does_not(sandbox):
    assert attack(sandbox, FORGERY, STATEMENTS)[0] == "crashed"
    assert attack(sandbox, FORGERY, TESTS)[0] == "assertion"
    assert attack(sandbox, READING_FORGERY, STATEMENTS)[0] == "correct"
    assert attack(sandbox, READING_FORGERY, TESTS)[0] == "assertion"


def test_there_are_enough_attacks():
    assert len(ATTACKS) + len(SCRIPT_ATTACKS) >= 80


def test_honest_programs_pass(sandbox):
    assert verdict(sandbox, GOOD, TESTS) == "correct"
    assert verdict(sandbox, GOOD_SCRIPT, SCRIPT_TESTS) == "correct"
    busy = (
        "import asyncio, concurrent.futures, tempfile, threading, os\n"
        "with tempfile.NamedTemporaryFile('w+') as file:\n"
        "    file.write('x'); file.seek(0); assert file.read() == 'x'\n"
        "with concurrent.futures.ThreadPoolExecutor(4) as pool: assert list(pool.map(abs, [-1, 2])) == [1, 2]\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "if os.fork() == 0: os._exit(0)\n"
        "os.wait()\n"
    )
    assert verdict(sandbox, busy + GOOD, TESTS) == "correct"


@pytest.mark.parametrize("name", REAL_WITHOUT_A_SANDBOX)
def test_the_attacks_are_real(host, name, tmp_path):
    program = ATTACKS[name].format(**host)
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nassert f(2) == 4"], cwd=tmp_path, capture_output=True, text=True
    )
    if name == "open files":
        assert "Too many open files" in done.stderr or done.returncode == 0
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["a file of the host", "the checkpoint folder", "the users"])
def test_the_weak_mode_does_not_isolate(host, name):
    program = ATTACKS[name].format(**host)
    assert verdict(WeakRunner(), program) == "correct"


def test_a_program_is_nobody_without_rights_and_sees_three_folders(sandbox):
    program = (
        "import os\n"
        f"assert os.getuid() not in (0, {os.getuid() or -1}), os.getuid()\n"
        "assert os.getgroups() in ([], [os.getgid()])\n"
        "assert os.environ.keys() == {'HOME', 'TMPDIR', 'PYTHONHASHSEED', 'PYTHONUTF8'}, os.environ\n"
        "for folder in ('/proc', '/sys', '/home', '/bin', '/usr/bin/sh', '/var'):\n"
        "    assert not os.path.exists(folder), folder\n"
    )
    assert verdict(sandbox, program + GOOD, TESTS) == "correct"


def test_a_sandbox_that_died_between_programs_is_replaced(sandbox):
    sandbox.open()
    os.kill(sandbox._first_process, 9)
    while psutil.pid_exists(sandbox._first_process):
        time.sleep(0.01)
    assert verdict(sandbox, GOOD, TESTS) == "correct"


def test_a_sandbox_that_dies_under_a_program_costs_that_program_only(sandbox):
    sandbox.open()
    killer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; kill -9 {sandbox._first_process}"])
    program = "import time; time.sleep(100)\n" + GOOD
    assert verdict(sandbox, program, TESTS) == "crashed"
    killer.wait()
    assert verdict(sandbox, GOOD, TESTS) == "correct"


def test_what_cannot_be_cleaned_up_costs_the_sandbox_not_the_verdict(sandbox):
    locked = "import os\nos.mkdir('locked'); open('locked/x', 'w').close(); os.chmod('locked', 0)\n"
    for program, tests in ((locked + GOOD, TESTS), (locked + GOOD_SCRIPT, SCRIPT_TESTS)):
        sandbox.open()
        first = sandbox._first_process
        assert verdict(sandbox, program, tests) == "correct"
        sandbox.open()
        assert sandbox._first_process != first


USER_SCRIPT = """
import json, sys
from megatron_prism.verification.sandbox.code_tests import parse_tests
from megatron_prism.verification.sandbox.judge import Limits, judge
from megatron_prism.verification.sandbox.bubblewrap import Sandbox
programs, tests = json.loads(sys.argv[1])
with Sandbox(256) as made:
    print([judge(made, program, parse_tests(tests), Limits(60, 256)).reason for program in programs])
"""


def test_an_ordinary_user_has_a_sandbox_too(bubblewrap):
    if os.getuid() != 0:
        pytest.skip("every other test here runs as an ordinary user already")
    programs = [
        *(GOOD, "import os\nos.chmod('.', 0)\n" + GOOD, CLEAN + GOOD),
        *(ATTACKS["a new user namespace"].format(), ATTACKS["limiting process 1"].format()),
    ]
    # Other users may not be able to read the interpreter of root.
    done = subprocess.run(
        [
            *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
            *("/usr/bin/python3", "-B", "-c", USER_SCRIPT, json.dumps([programs, TESTS])),
        ],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    assert done.stderr == ""
    assert done.stdout.count("correct") == 3, done.stdout
    assert done.stdout.startswith("['correct', 'correct', 'correct', 'exception")


def test_a_sandbox_is_replaced_after_so_many_programs(sandbox, monkeypatch):
    monkeypatch.setattr(bubblewrap_module, "PROGRAMS_PER_SANDBOX", 2)
    sandbox.close()
    first = []
    for _ in range(4):
        sandbox.open()
        first.append(sandbox._first_process)
        assert verdict(sandbox, GOOD, TESTS) == "correct"
    assert first[0] == first[1] != first[2] == first[3]


def test_closing_leaves_no_process_folder_group_or_descriptor(bubblewrap, new_children):
    descriptors = len(os.listdir("/proc/self/fd"))
    with Sandbox(MEMORY_MIB) as made:
        verdict(made, "import os; os.fork()", TESTS)
        processes = inside(made)
        folders = list(made.group.folders) if made.group else []
        assert all(folder.exists() for folder in folders)
        if folders:
            assert set(processes) <= set(map(int, (folders[0] / "cgroup.procs").read_text().split()))
    assert not new_children()
    assert not any(psutil.pid_exists(pid) for pid in processes)
    assert not any(folder.exists() for folder in folders)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_killed_worker_takes_its_sandbox_with_it(bubblewrap, new_children):
    tests = {"tests": TESTS, "kind": "code", "answer": "", "sandbox": "strong"}
    good = {**tests, "completion": f"```python\n{GOOD}```"}
    with GradingSettings(workers=1, timeout_seconds=PATIENT_SECONDS, memory_mib=400).open_pool() as pool:
        assert pool.map([good])[0]["correct"]
        (worker,) = pool.pids()
        assert len(new_children()) >= 3
        os.kill(worker, 9)
        assert pool.map([good])[0]["correct"]
    assert not new_children()
    groups = (*MOUNTS.glob(f"{PREFIX}{worker}-*"), *MOUNTS.glob(f"*/{PREFIX}{worker}-*"))
    assert not groups


def test_a_sandbox_that_cannot_start_says_why(bubblewrap, monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text(
        "#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sandbox(MEMORY_MIB) as made, pytest.raises(SandboxError, match="new namespace failed"):
        made.open()
    fake.unlink()
    with Sandbox(MEMORY_MIB) as made, pytest.raises(SandboxError, match="bwrap is not on PATH"):
        made.open()


def test_the_interpreter_is_shown_without_its_packages(bubblewrap):
    from megatron_prism.verification.sandbox.interpreter_files import interpreter_files

    files = interpreter_files()
    shown = (files.python, *files.folders, *files.files)
    assert all(os.path.isabs(path) and os.path.exists(path) for path in shown)
    assert not any(Path(path) in (Path("/"), Path("/usr"), Path("/usr/lib"), Path("/lib")) for path in shown)
    assert any("libc.so" in path for path in files.files)
    assert all("-packages" in path for path in files.hidden)


def test_a_host_with_many_open_files(tmp_path):
    """The sandbox's descriptors then have numbers above the limits of select() and of a program."""
    program = (
        "import os; kept = [os.open('/dev/null', os.O_RDONLY) for _ in range(1100)]\n"
        "from megatron_prism.verification.sandbox.isolation import sandbox_problem; print(sandbox_problem())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "None", done.stderr
