"""Tests of both modes of isolation; test_weak_runner.py and test_bubblewrap.py test their differences."""

from __future__ import annotations

import os
import tempfile

import pytest

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.verification.grade import GradeItem, grade, grade_all, grader_versions
from megatron_prism.verification.sandbox import isolation
from megatron_prism.verification.sandbox.isolation import run_tests
from megatron_prism.verification.sandbox.judge import Limits
from megatron_prism.verification.settings import GradingSettings

TESTS = ["assert f(2) == 4", "assert f(-3) == 9"]
GOOD = "def f(x):\n    return x * x\n"
# Enough for a much slower and busy machine.
PATIENT_SECONDS = 60.0
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
SUMS = [{"input": "1 2\n", "output": "3\n"}, {"input": "-5 5", "output": "0"}]
CALLS = [
    {"function": "f", "arguments": [2], "expected": [4, {"a": None}]},
    {"function": "f", "arguments": [-3], "expected": [9, {"a": None}]},
]


def fenced(program: str) -> str:
    return f" <think>\nsquare it\n</think>\n```python\n{program}\n```\n"


def verdict(runner, program, tests=TESTS, seconds=PATIENT_SECONDS):
    return run_tests(program, tests, Limits(seconds, 256), runner=runner).reason


@pytest.mark.parametrize("sandbox", isolation.MODES)
def test_right_and_wrong_programs(sandbox, request):
    if sandbox == isolation.STRONG:
        request.getfixturevalue("bubblewrap")
    assert grade("code", fenced(GOOD), tests=TESTS, sandbox=sandbox).correct
    wrong = grade("code", fenced("def f(x):\n    return x + 2\n"), tests=TESTS, sandbox=sandbox)
    assert (wrong.correct, wrong.reason) == (False, "assertion")
    assert grade("code", "no program", tests=TESTS, sandbox=sandbox).reason == "no_answer"


def test_the_standard_library_is_there_and_main_blocks_do_not_run(runner):
    program = "import math, collections, heapq, typing\ndef f(x): return math.prod([x, x])\n"
    assert verdict(runner, program + "if __name__ == '__main__':\n    input()\n") == "correct"


def test_the_same_program_gets_the_same_verdict(runner):
    # The order of a set of strings follows the hash seed: left random, the verdicts would differ.
    program = "import sys\nif list({*'abcdefgh'})[0] in 'abcd':\n    sys.exit()\nassert False\n"
    assert len({verdict(runner, program) for _ in range(8)}) == 1


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
        ("open('big', 'w').write('x' * 10**8)", "exception: OSError"),
        ("KEEP = [open('f', 'w') for _ in range(10**4)]", "exception: OSError"),
        ("def f(x) return", "exception: SyntaxError"),
        ("\ud800", "exception: UnicodeEncodeError"),
        ("class E(BaseException): pass\nraise E", "exception: E"),
        ("def f(x): return f(x)", "exception: RecursionError"),
        ("import numpy", "exception: ModuleNotFoundError"),
        ("assert False", "assertion"),
        ("def f(x): return x", "assertion"),
        ("def f(x): return 'x' * 10**7", "output"),
    ],
)
def test_bad_programs_fail_with_their_reason(runner, program, reason):
    seconds = 0.4 if reason == "timeout" else PATIENT_SECONDS
    assert verdict(runner, program, seconds=seconds) == reason


def test_the_first_failing_test_decides(runner):
    program = "import time\ndef f(x):\n    if x < 0: time.sleep(100)\n    return 5\n"
    late = run_tests(program, TESTS, Limits(2.0, 256), runner=runner)
    assert (late.reason, late.tests) == ("assertion", ["assertion", "timeout"])
    # The others are waited for, unless the caller wants only the first verdict.
    early = run_tests(program, TESTS, Limits(PATIENT_SECONDS, 256, stop_early=True), runner=runner)
    assert (early.reason, early.tests) == ("assertion", ["assertion", "not_run"])


def test_statements_run_beside_the_program_and_all_must_hold(runner):
    tests = ["total = f(2) + f(3)", "assert total == 13", "assert abs(f(2) - 4) < 1e-9"]
    assert verdict(runner, GOOD, tests) == "correct"
    assert verdict(runner, GOOD, [*tests, "assert not f(1)"]) == "assertion"
    assert verdict(runner, GOOD, [*tests, "f('x')"]) == "exception: TypeError"


def test_functions_are_called_and_their_values_compared(runner):
    program = "def f(x): return x * x, {'a': None}\n"
    assert verdict(runner, program, CALLS) == "correct"
    assert verdict(runner, program.replace("x * x", "x + 2"), CALLS) == "wrong"
    assert verdict(runner, program.replace("def f", "def g"), CALLS) == "exception: NameError"


def test_scripts_read_and_print(runner):
    assert verdict(runner, SUM, SUMS) == "correct"
    assert verdict(
        runner, f"if __name__ == '__main__':\n    {SUM.replace(chr(10), chr(10) + '    ')}\n", SUMS
    ) == ("correct")
    assert verdict(runner, SUM.replace("+ b", "- b"), SUMS) == "wrong"
    assert verdict(runner, SUM + "import sys; sys.exit(0)", SUMS) == "correct"
    assert verdict(runner, SUM + "import sys; sys.exit(3)", SUMS) == "exit"
    assert verdict(runner, SUM + "1/0", SUMS) == "exception: ZeroDivisionError"
    assert verdict(runner, SUM + "input()", SUMS) == "exception: EOFError"
    assert verdict(runner, SUM + "while True: print('x' * 1000)", SUMS) == "output"
    assert verdict(runner, "print(3)", SUMS) == "wrong"


def test_a_large_input_and_output_arrive_whole(runner):
    lines = "".join(f"{i} é\n" for i in range(100_000))
    program = "import sys\nfor line in sys.stdin:\n    print(line, end='')\n"
    assert verdict(runner, program, [{"input": lines, "output": lines}]) == "correct"
    assert verdict(runner, program, [{"input": lines, "output": lines + "x"}]) == "wrong"


def test_the_time_limit_is_for_all_runs_together(runner):
    slow = "import time\ntime.sleep(0.6)\n" + SUM
    assert verdict(runner, slow, SUMS[:1], seconds=PATIENT_SECONDS) == "correct"
    assert verdict(runner, slow, SUMS[:1] * 5, seconds=2.0) == "timeout"


def test_success_cannot_be_printed(runner):
    # The verdict is sent on some descriptor: a program that writes the word to all descriptors must not succeed.
    program = (
        "import os\n"
        "for fd in range(256):\n"
        "    for word in (b'correct', b'token', b'0' * 32, b'ran\\n', b'4\\n9\\n'):\n"
        "        try: os.write(fd, word)\n"
        "        except OSError: pass\n"
        "os._exit(0)\n"
    )
    # This must hold for any number of files that the parent has open.
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(200)]
    try:
        assert verdict(runner, program) == "crashed"
        assert verdict(runner, program.replace("os._exit(0)", GOOD)) == "crashed"
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_a_program_sees_no_environment_and_its_own_folder(runner, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    program = (
        "import os\nassert 'SECRET' not in os.environ\nassert os.listdir('.') == ['solution.py']\n" + GOOD
    )
    assert verdict(runner, program) == "correct"
    assert verdict(runner, program.replace("not in", "in")) == "assertion"
    assert verdict(runner, "open('m', 'w').write('x')\nassert open('m').read() == 'x'\n" + GOOD) == "correct"


@pytest.mark.parametrize("sandbox", isolation.MODES)
def test_nothing_is_left_behind(sandbox, new_children, request, monkeypatch, tmp_path):
    if sandbox == isolation.STRONG:
        request.getfixturevalue("bubblewrap")
        isolation.require_sandbox(sandbox)
    # A folder of its own, because tests of another process make such folders at the same time.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    program = "import time; open('x', 'w').write('x'); time.sleep(60)"
    assert run_tests(program, TESTS, Limits(0.3), sandbox=sandbox).reason == "timeout"
    assert not list(tmp_path.iterdir())
    assert not new_children()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_no_tests_is_an_error_not_a_pass():
    with pytest.raises(DataError, match="without tests"):
        run_tests(GOOD, [], sandbox="weak")
    with GradingSettings(workers=1).open_pool() as pool:
        made = grade_all([GradeItem("code", fenced(GOOD))], pool, sandbox="weak")
        assert made[0].reason == "error: DataError"


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'math'"):
        grade("maths", "x")
    with GradingSettings(workers=1).open_pool() as pool, pytest.raises(DataError, match="essay"):
        grade_all([GradeItem("essay", "x")], pool)


def test_unknown_mode_is_refused_with_the_nearest():
    with (
        GradingSettings(workers=1).open_pool() as pool,
        pytest.raises(ConfigError, match="did you mean 'strong'"),
    ):
        grade_all([GradeItem("math", "x", "1")], pool, sandbox="stong")


@pytest.mark.parametrize("sandbox", isolation.MODES)
def test_programs_in_the_pool_keep_order_and_limits(sandbox, request, new_children):
    if sandbox == isolation.STRONG:
        request.getfixturevalue("bubblewrap")
    good, slow = (
        GradeItem("code", fenced(GOOD), tests=TESTS),
        GradeItem("code", fenced("while 1: pass"), tests=TESTS),
    )
    with GradingSettings(workers=1, timeout_seconds=3.0, memory_mib=400).open_pool() as pool:
        made = grade_all([good, slow, good], pool, sandbox=sandbox)
        assert [g.reason for g in made] == ["correct", "timeout", "correct"]
        hog = GradeItem("code", fenced("x = bytearray(10**9)"), tests=TESTS)
        assert grade_all([hog], pool, sandbox=sandbox)[0].reason == "memory"
        scripts = GradeItem("code", fenced(SUM), tests=SUMS)
        calls = GradeItem("code", fenced("def f(x): return [x * x, {'a': None}]"), tests=CALLS)
        assert all(g.correct for g in grade_all([good, scripts, calls] * 3, pool, sandbox=sandbox))
    assert not new_children()


def test_strong_is_the_default_and_refuses_before_any_work_where_it_cannot_be(no_bubblewrap):
    item = GradeItem("code", fenced(GOOD), tests=TESTS)
    with GradingSettings(workers=1).open_pool() as pool:
        with pytest.raises(ConfigError, match=r"bwrap is not on PATH.*install bubblewrap.*sandbox=weak"):
            grade_all([item], pool)
        assert pool.pids() == []
        # Other kinds of problems need no sandbox.
        assert grade_all([GradeItem("choice", r"\boxed{C}", "C")], pool)[0].correct
    with pytest.raises(ConfigError, match="sandbox=strong"):
        grade("code", fenced(GOOD), tests=TESTS)


def test_the_weak_mode_says_aloud_what_it_is(caplog):
    isolation._warn_weak.cache_clear()
    with caplog.at_level("WARNING", logger="megatron_prism"):
        isolation.require_sandbox("weak")
    assert "sandbox=weak: programs that a model wrote run as this user and" in caplog.text


def test_versions_for_a_receipt(bubblewrap):
    assert {"grader", "math-verify"} <= set(grader_versions(["math"]))
    assert not {"sandbox", "bubblewrap", "time_factor"} & set(grader_versions(["math"]))
    versions = grader_versions(["code", "math"])
    assert versions["sandbox"] == "strong"
    assert float(versions["time_factor"]) >= 1.0
    assert versions["bubblewrap"].startswith("0.")
    assert grader_versions(["code"], "weak")["sandbox"] == "weak"
