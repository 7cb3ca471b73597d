"""A run that is given more steps goes on: which runs are the same up to their length, and what state they left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_prism.pipeline.stage import Stage
from megatron_prism.training.saved_state import resumable_states
from megatron_prism.training.schedule import Schedule


class HasLength(Protocol):
    """A config with a number of steps and a schedule."""

    steps: int
    schedule: Schedule


def with_schedule_length(identity: dict[str, Any], config: HasLength) -> dict[str, Any]:
    """`identity` with the schedule's length written out, whether the config names it or leaves it to the run's."""
    length = config.schedule.length(config.steps)
    return identity | {"schedule": identity["schedule"] | {"steps": length}}


def lineage_of(stage: Stage, inputs: Mapping[str, str]) -> str:
    """The fingerprint of a run without its length: everything else, and so every step, is the same."""
    identity = {key: value for key, value in stage.identity().items() if key != "steps"}
    return stage.hash_of(identity, inputs)


def resumable_steps(folder: Path, steps: int) -> int:
    """The step of the newest training state in a run's folder; 0 if there is none, or if it is after `steps`.

    A finished artifact has one if it was made with `checkpoints.keep_optimizer`.
    """
    newest = max((saved.step for saved in resumable_states(folder) if saved.has_optimizer), default=0)
    return newest if newest <= steps else 0


def missing_state(folder: Path, steps: int) -> str:
    """What a finished run in `folder` lacks, so that one of `steps` cannot go on from it; empty if that is not why."""
    states = resumable_states(folder)
    shorter = any(saved.step < steps for saved in states)
    if not shorter or any(saved.has_optimizer for saved in states):
        return ""
    return "it has no optimizer to go on from, which checkpoints.keep_optimizer=true would have kept"
