from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from megatron_prism.errors import DataError
from megatron_prism.verification.code import extract_code, run_tests
from megatron_prism.verification.grade import GradeItem, grade, grade_all
from megatron_prism.verification.workers import GradingPool

TESTS = ["assert f(2) == 4", "assert f(-3) == 9"]
# Room for a machine that is much slower and busy with other things.
PATIENT_SECONDS = 60.0
GOOD = "def f(x):\n    return x * x\n"


def fenced(program: str) -> str:
    return f" <think>\nsquare it\n</think>\n```python\n{program}\n```\n"


def test_the_last_fenced_block_of_the_final_part_is_taken():
    text = "<think>```python\na\n```</think>\n```python\nb\n```\ntext\n```py\nc = '``'\n```\nbye"
    assert extract_code(text) == "c = '``'\n"
    assert extract_code("```\nd\n```") == "d\n"
    assert extract_code("```python\nunclosed") is None
    assert extract_code("def f(x): return x") is None


def test_right_and_wrong_programs():
    assert grade("code", fenced(GOOD), tests=TESTS).correct
    wrong = grade("code", fenced("def f(x):\n    return x + 2\n"), tests=TESTS)
    assert (wrong.correct, wrong.reason) == (False, "assertion")
    assert grade("code", "no program", tests=TESTS).reason == "no_answer"


def test_the_standard_library_is_there_and_main_blocks_do_not_run():
    program = "import math, collections, heapq, typing\ndef f(x): return math.prod([x, x])\n"
    assert run_tests(program + "if __name__ == '__main__':\n    input()\n", TESTS) == "correct"


def test_the_same_program_gets_the_same_verdict():
    # The order of a set of strings follows the hash seed: left random, the verdicts would differ.
    program = "import sys\nif list({*'abcdefgh'})[0] in 'abcd':\n    sys.exit()\nassert False\n"
    assert len({run_tests(program, TESTS) for _ in range(8)}) == 1


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
        ("9**9**9", "timeout"),
        ("import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", "timeout"),
        ("x = [0] * 10**9", "memory"),
        ("import sys; sys.exit(0)", "exit"),
        ("raise SystemExit", "exit"),
        ("import os; os._exit(0)", "crashed"),
        ("print('correct')\nimport sys; print('correct', file=sys.stderr)", "exception: NameError"),
        ("import os; os.fork()", "exception: PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "exception: PermissionError"),
        (
            "import multiprocessing as m; m.get_context('fork').Process().start()",
            "exception: PermissionError",
        ),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "exception: PermissionError"),
        ("import socket; socket.socket()", "exception: PermissionError"),
        ("import shutil; shutil.rmtree('/')", "exception: PermissionError"),
        ("open('big', 'w').write('x' * 10**8)", "exception: OSError"),
        ("KEEP = [open('f', 'w') for _ in range(10**4)]", "exception: OSError"),
        ("def f(x) return", "exception: SyntaxError"),
        ("\ud800", "exception: UnicodeEncodeError"),
        ("class E(BaseException): pass\nraise E", "exception: E"),
        ("def f(x): return f(x)", "exception: RecursionError"),
        ("import numpy", "exception: ModuleNotFoundError"),
    ],
)
def test_bad_programs_fail_with_their_reason(program, reason):
    seconds = 0.4 if reason == "timeout" else PATIENT_SECONDS
    assert run_tests(program, TESTS, timeout_seconds=seconds, memory_mib=256) == reason


def test_success_cannot_be_printed():
    # The verdict goes out on some descriptor: a program that writes the word to all of them is no success.
    program = (
        "import os\n"
        "for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "    for word in (b'correct', b'token', b'0' * 32):\n"
        "        try: os.write(fd, word)\n"
        "        except OSError: pass\n"
        "os._exit(0)\n"
    )
    # However many files the parent has open.
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(200)]
    try:
        assert run_tests(program, TESTS, PATIENT_SECONDS) == "crashed"
        assert run_tests(program.replace("os._exit(0)", GOOD), TESTS, PATIENT_SECONDS) == "crashed"
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_a_program_sees_no_environment_and_its_own_folder(monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    program = "import os\nassert 'SECRET' not in os.environ\nassert os.listdir('.') == []\n" + GOOD
    assert run_tests(program, TESTS) == "correct"
    assert run_tests(program.replace("not in", "in"), TESTS) == "assertion"


def test_files_outside_the_working_folder_stay(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    for attack in (f"open({str(victim)!r}, 'w')", f"import os; os.remove({str(victim)!r})"):
        assert run_tests(attack, TESTS) == "exception: PermissionError"
    assert victim.read_text() == "precious"
    assert run_tests(
        "open('mine.txt', 'w').write('x')\nassert open('mine.txt').read() == 'x'\n" + GOOD, TESTS
    ) == ("correct")


def test_nothing_is_left_behind(new_children):
    before = set(Path(tempfile.gettempdir()).glob("prism-code-*"))
    descriptors = len(os.listdir("/proc/self/fd"))
    run_tests("import time; open('x', 'w').write('x'); time.sleep(60)", TESTS, timeout_seconds=0.3)
    assert set(Path(tempfile.gettempdir()).glob("prism-code-*")) == before
    assert not new_children()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_no_tests_is_an_error_not_a_pass():
    with pytest.raises(ValueError, match="no tests"):
        run_tests(GOOD, [])


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'math'"):
        grade("maths", "x")
    with GradingPool() as pool, pytest.raises(DataError, match="essay"):
        grade_all([GradeItem("essay", "x")], pool)


def test_programs_in_the_pool_keep_order_and_limits():
    good, slow = (
        GradeItem("code", fenced(GOOD), tests=TESTS),
        GradeItem("code", fenced("while 1: pass"), tests=TESTS),
    )
    with GradingPool(timeout_seconds=3.0, memory_mib=400) as pool:
        assert [g.reason for g in grade_all([good, slow, good], pool)] == ["correct", "timeout", "correct"]
        hog = GradeItem("code", fenced("x = bytearray(10**9)"), tests=TESTS)
        assert grade_all([hog], pool)[0].reason == "memory"
        assert all(made.correct for made in grade_all([good] * 10, pool))


def test_a_pool_without_tests_reports_an_error():
    with GradingPool() as pool:
        assert grade_all([GradeItem("code", fenced(GOOD))], pool)[0].reason == "error: ValueError"
