"""A recipe with stages of its own, for the tests of launching: `one` -> `two`, and `three`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ConfigError, Requeue
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.stage import Stage, tuning


@dataclass
class Note(Stage):
    """Writes its text; 'refuse' is a user's mistake, 'stop' a stage that was stopped.

    In 'crash' the process of the last rank is lost, and the others wait for it. 'wait' takes half a minute.
    """

    kind: ClassVar[str] = "note"
    text: str = "text"
    ranks: int = tuning(1)

    @property
    def world_size(self) -> int:
        return self.ranks

    def run(self, inputs: Any, out: Path) -> dict[str, Any]:
        if self.text == "refuse":
            raise ConfigError("text=refuse: this text is refused")
        if self.text == "stop":
            raise Requeue("saved")
        if self.text == "wait":
            time.sleep(30)
        if self.text == "crash":
            if int(os.environ.get("RANK", "0")) == self.ranks - 1:
                os._exit(7)
            time.sleep(30)
        if os.environ.get("RANK", "0") == "0":
            (out / "note.txt").write_text(self.text)
        return {"world_size": int(os.environ.get("WORLD_SIZE", "1")), "variable": os.environ.get("NOTE", "")}


def recipe(*, first: str = "first", ranks: int = 1) -> Graph:
    graph = Graph("notes")
    one = graph.add("one", Note(text=first, ranks=ranks))
    graph.add("two", Note(text="second"), one=one)
    graph.add("three", Note(text="third"))
    return graph
