from __future__ import annotations

import shutil
from collections.abc import Callable

import psutil
import pytest

from megatron_prism.verification.sandbox.isolation import open_runner


@pytest.fixture
def new_children() -> Callable[[], set[int]]:
    """Child processes that were not there when the test began.

    The process of the whole suite has other children: the server of `warm.py`, and those that other tests left running.
    """

    def pids() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    before = pids()
    return lambda: pids() - before


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed: apt-get install bubblewrap")


@pytest.fixture(scope="module", params=["strong", "weak"])
def runner(request):
    """A runner of each mode, with 256 MiB for a program."""
    if request.param == "strong":
        request.getfixturevalue("bubblewrap")
    with open_runner(request.param, 256) as made:
        yield made
