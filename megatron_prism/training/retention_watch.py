"""What a model forgets while it learns: losses on text that is not in the mixture, against the gain on the mixture.

Both are differences to the losses before the first step. A run may stop when it forgets too much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.config import not_negative, positive

BASELINE = "retention.json"


@dataclass
class RetentionWatch:
    """The fields of `watch`. They are part of the run's identity only if the watch may stop it.

    Attributes:
        every: steps between measurements; 0 for none.
        sources: sources of the tokens whose held-out text the model should not forget, in the mixture or not.
        batches: global batches of each source.
        stop_if_loss_rises_by: the run ends when the mean loss of these sources is this much above that before the first
            step; 0 never ends it.
    """

    every: int = 0
    sources: list[str] = field(default_factory=list)
    batches: int = 4
    stop_if_loss_rises_by: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "batches", group="watch")
        not_negative(self, "every", "stop_if_loss_rises_by", group="watch")
        if bool(self.every) != bool(self.sources):
            raise ConfigError(
                f"watch: every={self.every} with sources={self.sources}; set both, or neither for no watch"
            )
        if self.stop_if_loss_rises_by and not self.every:
            raise ConfigError(
                "watch.stop_if_loss_rises_by: nothing is watched; set watch.every and watch.sources"
            )

    def identity(self) -> dict[str, Any]:
        """All fields if the watch may end the run, else nothing."""
        return dict(vars(self)) if self.stop_if_loss_rises_by else {}


class Retention:
    """Measures at chosen steps; every rank makes the same calls and gets the same numbers.

    Args:
        measure: the losses now of the watched sources, and of those of the mixture.
        out: the run's folder, where the losses before the first step are kept for a resumed run.
        writes: whether this process writes them.

    Attributes:
        last: the last measurement; empty before the first one.
        stopped: why the run must end; empty if it must not.
    """

    def __init__(
        self,
        settings: RetentionWatch,
        measure: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]],
        *,
        out: Path,
        writes: bool,
    ) -> None:
        self.settings, self._measure = settings, measure
        self.last: dict[str, Any] = {}
        self.stopped = ""
        self._baseline: dict[str, dict[str, float]] = {}
        file = out / BASELINE
        if not settings.every:
            return
        if file.is_file():
            self._baseline = json.loads(file.read_text())
            return
        kept, learned = measure()
        self._baseline = {"kept": dict(kept), "learned": dict(learned)}
        if writes:
            write_json(file, self._baseline)

    def due(self, step: int) -> bool:
        """Whether the watch measures after this step."""
        return bool(self.settings.every) and step % self.settings.every == 0

    def check(self, step: int) -> dict[str, Any]:
        """Measure after a step, and decide whether the run must end.

        Returns:
            `loss`: how much the loss of each watched source rose, with their mean as `mean`; `gain`: how much that of
            each source of the mixture fell.
        """
        kept, learned = self._measure()
        rises = {name: loss - self._baseline["kept"][name] for name, loss in kept.items()}
        rises["mean"] = sum(rises.values()) / len(rises)
        gains = {name: self._baseline["learned"][name] - loss for name, loss in learned.items()}
        self.last = {"loss": rises, "gain": gains}
        limit = self.settings.stop_if_loss_rises_by
        # A loss that is not a number is forgotten text, too.
        if limit and not rises["mean"] < limit:
            self.stopped = (
                f"stopped after step {step}: the loss of {', '.join(kept)} rose by {rises['mean']:.3f} "
                f"(watch.stop_if_loss_rises_by={limit})"
            )
        return self.last
