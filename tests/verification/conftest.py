from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest


@pytest.fixture
def new_children() -> Callable[[], set[int]]:
    """Child processes that were not there when the test began.

    Megatron-Core keeps a queue manager alive once it has saved a checkpoint, so the whole suite's process has
    children of its own.
    """

    def pids() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    before = pids()
    return lambda: pids() - before
