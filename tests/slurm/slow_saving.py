"""A recipe whose first stage, on two ranks, takes seconds to save its state on the second when it is asked to stop."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import Requeue
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stop_file import asked_to_stop

SAVE_SECONDS = 4.0


@dataclass
class Saves(Stage):
    """Waits until it is asked to stop, and saves; when it runs again, it is done."""

    kind: ClassVar[str] = "saves"
    stoppable: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    @property
    def world_size(self) -> int:
        return 2

    def run(self, inputs: Any, out: Path) -> dict[str, Any]:
        saved, rank = out / "saved", os.environ["RANK"]
        if saved.exists():
            return {}
        (out / f"waits{rank}").touch()
        _wait(lambda: asked_to_stop(out))
        if rank == "1":
            time.sleep(SAVE_SECONDS)
            saved.touch()
        _wait(saved.exists)
        raise Requeue("saved")


@dataclass
class After(Stage):
    kind: ClassVar[str] = "after"

    def run(self, inputs: Any, out: Path) -> dict[str, Any]:
        return {}


def _wait(what: Any) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def recipe() -> Graph:
    graph = Graph("slow-saving")
    saves = graph.add("saves", Saves())
    graph.add("after", After(), saves=saves)
    return graph
