"""Whole records of LiveCodeBench, with private tests as text and compressed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib

import pytest

from megatron_prism.errors import DataError
from megatron_prism.verification.sandbox.isolation import run_tests
from megatron_prism.verification.sandbox.judge import Limits
from megatron_prism.verification.sandbox.livecodebench import TIME_LIMIT_SECONDS, livecodebench_tests

STDIN = {"input": "1 2\n", "output": "3\n", "testtype": "stdin"}
CALL = {"input": "1\n2", "output": "3", "testtype": "functional"}


def compressed(value) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def record(public, private, metadata="{}"):
    return {
        **{"question_id": "abc301_a", "platform": "atcoder", "starter_code": "", "difficulty": "easy"},
        **{"public_test_cases": json.dumps(public), "private_test_cases": private, "metadata": metadata},
    }


@pytest.mark.parametrize("pack", [json.dumps, lambda cases: compressed(json.dumps(cases))])
def test_public_and_private_tests_are_read(pack, runner):
    limits = Limits(60.0, 256)
    tests = livecodebench_tests(record([STDIN], pack([STDIN, {**STDIN, "input": "2 2", "output": "4"}])))
    assert [test["time_limit"] for test in tests] == [TIME_LIMIT_SECONDS] * 3
    program = "print(sum(map(int, input().split())))"
    assert run_tests(program, tests, limits, runner=runner).tests == ["correct"] * 3
    calls = livecodebench_tests(record([CALL], pack([CALL]), '{"func_name": "add"}'))
    program = "class Solution:\n    def add(self, a, b): return a + b"
    assert run_tests(program, calls, limits, runner=runner).tests == ["correct"] * 2


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"'private_test_cases' is neither JSON nor compressed JSON.*posix.mkdir"
    ):
        livecodebench_tests(record([STDIN], compressed(Hostile())))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"private_test_cases": "not base64!"}, "'private_test_cases' is neither JSON nor"),
        ({"private_test_cases": '{"a": 1}'}, "'private_test_cases' must be a list of tests, found dict"),
        (
            {"public_test_cases": json.dumps([CALL])},
            r"tests\[0\]: a functional test needs the function's name",
        ),
        (
            {"public_test_cases": json.dumps([{"input": "1", "testtype": "stdin"}])},
            r"key 'output' is missing",
        ),
    ],
)
def test_what_cannot_be_read_is_named(wrong, said):
    with pytest.raises(DataError, match=f"f.jsonl:2: .*{said}"):
        livecodebench_tests({**record([STDIN], "[]"), **wrong}, "f.jsonl:2")
    with pytest.raises(DataError, match="'private_test_cases' is missing"):
        livecodebench_tests({"public_test_cases": "[]"})
