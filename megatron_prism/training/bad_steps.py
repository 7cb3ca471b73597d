"""What a training run does about a step that went wrong: it says which samples it read, and goes on, back, or stops."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_prism.errors import TrainingError
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.platform.console import get_logger, is_rank_zero
from megatron_prism.platform.hardware import device
from megatron_prism.training.checkpoint import TrainingState
from megatron_prism.training.guard import Guard, GuardSettings, Verdict
from megatron_prism.training.run_folder import RunFolder

RULED_OUT = "ruled_out_batches.json"

log = get_logger(__name__)


class RollBack(Exception):
    """Asks the run to begin again at its newest checkpoint."""


class BadSteps:
    """Judges the steps of a run and reacts; every rank makes the same calls.

    Args:
        sources: the names of the sources, in the order of the dataset's index.
        write: writes a line of metrics.jsonl.
    """

    def __init__(
        self,
        settings: GuardSettings,
        folder: RunFolder,
        state: TrainingState,
        *,
        sources: Sequence[str],
        write: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.guard = Guard(settings, state.guard)
        self.folder, self.sources, self.write = folder, list(sources), write
        self.file = folder.out / RULED_OUT
        self.ruled_out: list[int] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.last_good = TrainingState(state.step, state.consumed_samples, state.guard)

    def skips_batch(self, before: TrainingState) -> bool:
        """Whether the next batch was ruled out by a rollback; its step then passes without an update."""
        if before.consumed_samples not in self.ruled_out:
            return False
        self.guard.skipped += 1
        self._report(before.step + 1, {"skipped": "ruled out by a rollback"})
        return True

    def handle(self, before: TrainingState, dataset: Any, samples: int) -> bool:
        """React to the verdict on the step that read `samples` samples after `before`; returns whether it was applied.

        Raises:
            TrainingError: after more bad steps in a row than the settings allow.
            RollBack: to return to the last checkpoint.
        """
        guard, step = self.guard, before.step + 1
        if guard.verdict is Verdict.FINE:
            return True
        read = range(before.consumed_samples, before.consumed_samples + samples)
        sources = self._sources(dataset, read)
        event = {"samples": [read.start, read.stop - 1], "sources": sources, "reason": guard.reason}
        named = f"samples {read.start} to {read.stop - 1}" + (f" of {', '.join(sources)}" if sources else "")
        if not guard.streak:
            self._report(step, {"spike": event})
            log_once("step %d: %s; %s", step, guard.reason, named)
            return True
        self._report(step, {"skipped": event})
        log_once(
            "step %d: %s, so its update is not applied (%d in a row); %s",
            *(step, guard.reason, guard.streak, named),
        )
        if guard.streak == 1:
            self.last_good = TrainingState(before.step, before.consumed_samples, guard.state())
        if guard.must_stop:
            raise TrainingError(self._farewell(step))
        if guard.verdict is Verdict.SPIKE and guard.settings.on_spike == "rollback":
            self._roll_back(before)
        return False

    def _roll_back(self, before: TrainingState) -> None:
        newest = self.folder.newest_step()
        if newest is None:
            log_once("step %d: there is no checkpoint yet to return to", before.step + 1)
            return
        self.ruled_out.append(before.consumed_samples)
        if is_rank_zero():
            write_json(self.file, self.ruled_out)
        dist.barrier()
        if len(self.ruled_out) > self.guard.settings.max_skipped + self._allowed_before(newest):
            raise TrainingError(
                f"step {before.step + 1}: {self.guard.reason}, after {len(self.ruled_out) - 1} rollbacks "
                f"(guard.max_skipped={self.guard.settings.max_skipped}); the checkpoint of step {newest} is kept"
            )
        log_once("step %d: returns to the checkpoint of step %d", before.step + 1, newest)
        raise RollBack

    def _allowed_before(self, newest: int) -> int:
        """Rollbacks that lie before the newest checkpoint: the run got past them."""
        position = self.folder.newest_position()
        return sum(first < position for first in self.ruled_out)

    def _farewell(self, step: int) -> str:
        """Keep the state before the first bad step, and say where it is."""
        first = self.last_good.step + 1
        message = (
            f"steps {first} to {step}: {self.guard.reason}; {self.guard.streak} updates in a row were not applied "
            f"(guard.max_skipped={self.guard.settings.max_skipped})"
        )
        newest = self.folder.newest_step()
        if newest != self.last_good.step and self.last_good.step and _finite(self.folder.trainer.models):
            # No update was applied since, so the weights still are those of that step.
            self.folder.save_step(self.last_good)
            self.folder.wait()
            newest = self.last_good.step
        if newest is None:
            return f"{message}; the run has no checkpoint"
        return f"{message}; the checkpoint of step {newest}, before the first of them, is kept in {self.folder.out}"

    def _report(self, step: int, event: Mapping[str, Any]) -> None:
        if is_rank_zero():
            self.write({"step": step, **event})

    def _sources(self, dataset: Any, read: range) -> dict[str, int]:
        """How many of these samples come from each source."""
        if len(self.sources) == 1:
            return {self.sources[0]: len(read)}
        counts = Counter(self.sources[int(dataset.dataset_index[index])] for index in read)
        return dict(counts)


def log_once(message: str, *arguments: object) -> None:
    """A warning from rank 0; all ranks have the same one."""
    if is_rank_zero():
        log.warning(message, *arguments)


def _finite(models: Sequence[Any]) -> bool:
    """Whether every weight on every rank is finite."""
    own = all(bool(torch.isfinite(p).all()) for model in models for p in model.parameters())
    worst = torch.tensor([int(own)], dtype=torch.int32, device=device())
    dist.all_reduce(worst, op=dist.ReduceOp.MIN)
    return bool(worst.item())
