"""The weak mode: accidents are stopped. A negative control in test_bubblewrap.py shows that it does not isolate."""

from __future__ import annotations

import pytest

from megatron_prism.verification.sandbox.isolation import run_tests
from megatron_prism.verification.sandbox.judge import Limits
from megatron_prism.verification.sandbox.weak_runner import WeakRunner

TESTS = ["assert f(2) == 4"]


def verdict(program):
    return run_tests(program, TESTS, Limits(60.0, 256), runner=WeakRunner()).reason


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing as m; m.get_context('fork').Process().start()",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import socket; socket.socket()",
        "import shutil; shutil.rmtree('/')",
    ],
)
def test_what_could_do_harm_by_accident_is_refused(program):
    assert verdict(program) == "exception: PermissionError"


def test_files_outside_the_working_folder_stay(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    for attack in (f"open({str(victim)!r}, 'w')", f"import os; os.remove({str(victim)!r})"):
        assert verdict(attack) == "exception: PermissionError"
    assert victim.read_text() == "precious"
