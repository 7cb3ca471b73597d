"""Tests as LiveCodeBench and Codeforces give them, the verdict on each test, and the limits of a single one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from megatron_prism.errors import DataError
from megatron_prism.verification.grade import GradeItem, grade, grade_all
from megatron_prism.verification.sandbox.bubblewrap import Sandbox
from megatron_prism.verification.sandbox.code_tests import parse_tests
from megatron_prism.verification.sandbox.isolation import run_tests
from megatron_prism.verification.sandbox.judge import Limits
from megatron_prism.verification.sandbox.machine_speed import LARGEST_FACTOR, time_factor
from megatron_prism.verification.sandbox.output_comparison import normal_output, same_output
from megatron_prism.verification.settings import GradingSettings

CASES = Path(__file__).parents[1] / "cases" / "code.jsonl"
PATIENT = Limits(60.0, 256)
SQUARE = "class Solution:\n    def square(self, x):\n        return x * x\n"


@pytest.fixture(scope="module")
def runner(bubblewrap):
    """Only the strong mode: test_isolation.py compares the two."""
    with Sandbox(1024) as made:
        yield made


def functional(text, output, name="square", **more):
    return {"input": text, "output": output, "testtype": "functional", "fn_name": name, **more}


def judged(runner, program, tests, limits=PATIENT):
    return run_tests(program, tests, limits, runner=runner)


@pytest.mark.parametrize(
    "row", CASES.read_text("utf-8").splitlines(), ids=lambda row: json.loads(row)["name"]
)
def test_the_verdict_of_a_careful_reader(runner, row):
    case = json.loads(row)
    made = grade("code", case["completion"], tests=case["tests"], runner=runner, memory_mib=1024)
    assert made.correct == case["right"], made


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("5", "5\n"),
        (" 5 \n\n", "5"),
        ("1 2\n3", "1 2 \n 3"),
        ("5\r\n6\r\n", "5\n6"),
        ("0.50", "0.5"),
        ("5.0 -0", "5 0"),
        ("1e3", "1000"),
        ("", "\n"),
        ("1  2", "1 2"),
        (f"1{'0' * 5000}", f"1{'0' * 5000}.0"),
    ],
)
def test_equal_outputs(printed, expected):
    assert same_output(printed, normal_output(expected))


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.30000000000000004", "0.3"),
        ("1\n\n2", "1\n2"),
        ("1 2", "1\n2"),
        ("a  b", "a b"),
        ("Yes", "YES"),
        ("1_000", "1000"),
        ("５", "5"),
        ("inf", "Infinity"),
        ("nan", "NaN"),
        ("0x5", "5"),
        ("5", ""),
        ("1e999999999999999999999", "1e999999999999999999998"),
    ],
)
def test_different_outputs(printed, expected):
    assert not same_output(printed, normal_output(expected))


def test_functional_tests_of_livecodebench(runner):
    tests = [functional("3", "9"), functional("-2", "4")]
    assert judged(runner, SQUARE, tests).reason == "correct"
    assert judged(runner, "def square(x): return x * x", tests).reason == "correct"
    assert judged(runner, SQUARE.replace("x * x", "3 * x"), tests).tests == ["correct", "wrong"]
    two = functional('[1, 2]\n"é"', '[[1, 2], "é"]', "pair")
    assert (
        judged(runner, "class Solution:\n    def pair(self, a, b): return (a, b)", [two]).reason == "correct"
    )
    # LeetCode makes a new object for each test.
    counting = (
        "class Solution:\n    def __init__(self): self.n = 0\n    def count(self):\n        self.n += 1\n"
    )
    assert (
        judged(runner, f"{counting}        return self.n", [functional("", "1", "count")] * 2).reason
        == "correct"
    )


def test_the_name_of_a_function_may_be_in_any_field_of_the_record(runner):
    base = {"input": "3", "output": "9"}
    for named in (
        {"testtype": "functional", "func_name": "square"},
        {"testtype": "functional", "metadata": {"func_name": "square"}},
        {"testtype": "functional", "metadata": '{"func_name": "square"}'},
        {"fn_name": "square"},
    ):
        assert judged(runner, SQUARE, [{**base, **named}]).reason == "correct"
    script = {**base, "testtype": "stdin", "metadata": "{}", "fn_name": None}
    assert judged(runner, "print(int(input()) ** 2)", [script]).reason == "correct"


def test_names_that_the_harness_imports_are_lent_to_the_program_only(runner):
    program = "class Solution:\n    def f(self, xs: List[int]) -> int:\n        return math.gcd(*xs) + deque([1])[0]\n"
    assert judged(runner, program, [functional("[4, 6]", "3", "f")]).reason == "correct"
    # operator.add, which the harness imports too, is not the program's.
    for program in ("x = 1", "def total(xs): return reduce(add, xs)", "s = set()\ns.add(1)"):
        for test in (
            "assert add(2, 3) == 5",
            "assert abs(add(2, 3) - 5) < 1",
            functional("2\n3", "5", "add"),
        ):
            assert judged(runner, program, [test]).reason == "exception: NameError"
    assert judged(runner, "def add(a, b): return a + b", ["assert add(2, 3) == 5"]).reason == "correct"
    # A namespace holds only what the program uses.
    assert judged(
        runner, "print(sorted(n for n in globals() if n[0] != '_'))", [{"input": "", "output": "[]"}]
    )


def test_recursion_as_deep_as_livecodebench_allows(runner):
    program = "def f(n): return n and 1 + f(n - 1)\nprint(f(20_000))"
    test = {"input": "", "output": "20000"}
    assert judged(runner, program, [{**test, "testtype": "stdin"}]).reason == "correct"
    assert judged(runner, program, [test]).reason == "exception: RecursionError"


CHECKER = """
import sys
given, reference, printed = (open(path).read() for path in sys.argv[1:])
assert int(reference.split()[0]) >= 0
a, b = map(int, printed.split())
print(1 if a + b == int(given) else 0)
"""


def test_a_checker_decides_where_several_outputs_are_right(runner):
    tests = [{"input": "7\n", "output": "3\n4\n", "checker": CHECKER}]
    assert judged(runner, "print(2, int(input()) - 2)", tests).reason == "correct"
    assert judged(runner, "print(1, 1)", tests).reason == "wrong"
    assert judged(runner, "print('no')", tests).reason == "checker: exception: ValueError"
    assert judged(runner, "1 / 0", tests).reason == "exception: ZeroDivisionError"
    # Without the checker the same output is wrong.
    del tests[0]["checker"]
    assert judged(runner, "print(2, int(input()) - 2)", tests).reason == "wrong"


def test_a_checker_is_not_moved_by_what_the_program_leaves(runner):
    program = (
        "for name in ('input.txt', 'correct_output.txt', 'solution_output.txt', 'checker.py', 'sys.py'):\n"
        "    open(name, 'w').write('print(1)')\nprint(1)\nprint(100)\n"
    )
    tests = [{"input": "7\n", "output": "3\n4\n", "checker": CHECKER}]
    assert judged(runner, program, tests).reason == "wrong"
    loop = {**tests[0], "checker": "while True: pass"}
    assert judged(runner, "print(3, 4)", [loop], Limits(1.0, 256)).reason == "timeout"


def test_every_test_has_a_verdict(runner):
    program = "def f(x):\n    if x == 2: raise KeyError\n    return x"
    tests = [
        "assert f(1) == 1",
        "y = f(1)\nassert f(2) == 2\nassert y == 1",
        "assert f(3) == 4",
        "assert f(5) == 5",
    ]
    assert judged(runner, program, tests).tests == ["correct", "exception: KeyError", "assertion", "correct"]
    assert judged(runner, program, tests).reason == "exception: KeyError"
    early = judged(runner, program, tests, Limits(60.0, 256, stop_early=True))
    assert early.tests == ["correct", "exception: KeyError", "not_run", "not_run"]
    assert judged(runner, "x = = 1", tests).tests == ["exception: SyntaxError"] * 4
    dying = "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x"
    assert judged(runner, dying, tests).tests == ["correct", "crashed", "not_run", "not_run"]


def test_every_run_of_a_script_has_a_verdict(runner):
    program = "x = int(input())\nprint(10 // x)"
    tests = [{"input": str(x), "output": "5"} for x in (2, 0, 1, 2)]
    reasons = ["correct", "exception: ZeroDivisionError", "wrong", "correct"]
    assert judged(runner, program, tests).tests == reasons
    early = judged(runner, program, tests, Limits(60.0, 256, stop_early=True))
    assert early.tests == [*reasons[:2], "not_run", "not_run"]
    slow = judged(runner, "import time\ntime.sleep(0.4)\nprint(5)", tests, Limits(0.7, 256))
    assert (slow.tests[-1], slow.reason) == ("not_run", "timeout")


def test_a_test_may_have_its_own_limit_which_the_machine_scales(runner):
    program = "import time\nx = int(input())\ntime.sleep(x)\nprint(x)"
    tests = [{"input": str(x), "output": str(x), "time_limit": 0.5} for x in (0, 1)]
    start = time.monotonic()
    assert judged(runner, program, tests).tests == ["correct", "timeout"]
    assert time.monotonic() - start < 20
    assert judged(runner, program, tests, Limits(60.0, 256, time_factor=10.0)).reason == "correct"
    calls = [{"function": "f", "arguments": [x], "expected": x, "time_limit": 0.5} for x in (0, 1, 0)]
    program = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    assert judged(runner, program, calls).tests == ["correct", "timeout", "not_run"]


def test_the_factor_of_this_machine_is_measured_once_and_never_shortens_a_limit():
    assert 1.0 <= time_factor() <= LARGEST_FACTOR
    assert time_factor() == time_factor()


def test_options_reach_the_workers_and_verdicts_come_back(bubblewrap):
    item = GradeItem(
        "code", "```python\nprint(1)\n```", tests=[{"input": "", "output": str(n)} for n in (1, 2, 3)]
    )
    for stop, last in ((False, "wrong"), (True, "not_run")):
        with GradingSettings(workers=1, stop_early=stop, timeout_seconds=30.0).open_pool() as pool:
            assert grade_all([item], pool)[0].tests == ["correct", "wrong", last]


MAGIC = """
class Magic:
    def __eq__(self, other): return True
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __eq__
    def __ne__(self, other): return False
    def __sub__(self, other): return self
    __rsub__ = __add__ = __mul__ = __sub__
    def __abs__(self): return self
    def __hash__(self): return 4
    def __bool__(self): return True
class Number(int):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda *_: True
    __ne__ = lambda *_: False
    __hash__ = int.__hash__
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert abs(f(2) - 4) < 1e-6",
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\ncheck(f)",
        "assert f(2) in (4, 5)",
        "assert 4 in [f(2)]",
        "assert f(2) == 4 and f(3) == 9",
        "assert not f(2) != 4",
        "assert 3 < f(2) < 5",
        "assert all(f(x) == x * x for x in (2, 3))",
        "y = 4\nassert [f(2)] == [y]",
        "y = 4\nassert {'a': f(2)} == {'a': y}",
    ],
)
def test_an_object_that_claims_to_be_right_does_not_pass_a_statement(runner, test):
    assert judged(runner, f"{MAGIC}\ndef f(x): return x * x", [test]).reason == "correct"
    for value in ("Magic()", "Number(77)"):
        reason = judged(runner, f"{MAGIC}\ndef f(x): return {value}", [test]).reason
        assert reason == "assertion"


def test_comparisons_of_the_programs_own_objects_are_its_own(runner):
    program = (
        "from collections import namedtuple, Counter, OrderedDict\nfrom enum import Enum, IntEnum\n"
        "P = namedtuple('P', 'x y')\nclass C(Enum):\n    A = 1\nclass I(IntEnum):\n    B = 2\n"
        "class V:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x\n"
        "    def __lt__(self, o): return self.x < o.x\n    def __contains__(self, x): return x == self.x\n"
    )
    tests = [
        "assert V(1) == V(1) and V(1) != V(2) and V(1) < V(2)",
        "assert 1 in V(1) and 2 not in V(1)",
        "assert C.A == C.A and C.A in list(C) and C.A is C.A",
        "assert P(1, 2) == (1, 2) and (0, 0) < P(1, 2) and 1 in P(1, 2)",
        "assert I.B == 2 and I.B < 3 and 2 in [I.B]",
        "assert Counter('aab') == {'a': 2, 'b': 1} and 'a' in Counter('a')",
        "assert OrderedDict(a=1) == {'a': 1}",
        "x = [V(1)]\nassert x == x and x[0] in x",
        "import math\nassert 'b' in 'abc' and 2 in range(3) and math.pi > 3 and {1} <= {1, 2}",
        "nan = float('nan')\nassert nan != nan and not nan == nan",
    ]
    assert judged(runner, program, tests).tests == ["correct"] * len(tests)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (
            {"input": "1", "output": "2", "testtype": "stdout"},
            "'testtype' is 'stdout'; known: functional, stdin",
        ),
        (
            {"input": "1", "output": "2", "testtype": "functional"},
            "needs the function's name; copy it from 'metadata'",
        ),
        (functional("{1", "2"), "a line of 'input' is not JSON: '{1'"),
        (functional("1", "two"), "'output' is not JSON: 'two'"),
        (functional("1", "2", "a b"), "'fn_name' must be the name of a function, found 'a b'"),
        ({"input": 1, "output": "2"}, "'input' must be text, found int"),
        ({"input": ["1", 2], "output": "2"}, "'input' must be text, found list"),
        ({"input": "", "output": "", "checker": "def ("}, "'checker' is not a Python program"),
        ({"input": "", "output": "", "checker": 5}, "'checker' is not a Python program"),
        (
            {"input": "", "output": "", "time_limit": 0},
            "'time_limit' must be a positive number of seconds, found 0",
        ),
        ({"input": "", "output": "", "time_limit": True}, "'time_limit' must be"),
        ({"input": "", "output": "", "metadata": "{"}, "'metadata' is not JSON"),
        ({"input": "", "output": "", "metadata": 3}, "'metadata' must be a mapping"),
        (
            {"input": "", "output": "", "test_type": "stdin"},
            "unknown key 'test_type'; did you mean 'testtype'",
        ),
        ({"function": "f.", "arguments": [], "expected": 1}, "'function' must be the name of a function"),
    ],
)
def test_malformed_records_are_named_with_their_key_and_a_remedy(test, said):
    with pytest.raises(DataError, match=rf"suite.jsonl:3: 'tests'\[0\].*{said}"):
        parse_tests([test], "suite.jsonl:3: 'tests'")


def test_lists_of_lines_are_joined_as_the_harness_does():
    (case,) = parse_tests([{"input": ["1", "2"], "output": ["3"]}]).cases
    assert (case.input, case.output) == (b"1\n2", ["3"])
