"""The checkpoints of one run by step: those that it keeps in `weights/step_N`, or model folders that the user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.model_folder import CHECKPOINT, find_model
from megatron_prism.pipeline.artifact import RECEIPT
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.training.saved_state import RECORD, UNFINISHED, WEIGHTS, read_state

# Kinds of stages whose inputs name the model that they train.
TRAINING = ("train", "rl")
# The last number in a name.
NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass(frozen=True)
class RunStep:
    """A model of the run after `step` of its steps."""

    step: int
    folder: Path


def find_steps(given: Sequence[Path], least: int = 2) -> list[RunStep]:
    """The steps of a run, in their order.

    Args:
        given: the folder of a run's stage, which keeps weights by step, or two or more model folders with the number
            of the step as the last number in their names, such as `step_0000020`.
        least: how many steps are needed.

    Raises:
        ConfigError: if there are fewer, one has no number, two have the same, or they belong to different runs.
        CheckpointError: if there is no such folder.
    """
    for folder in given:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder")
    kept = [folder for folder in given if (folder / WEIGHTS).is_dir()]
    if kept and len(given) > 1:
        raise ConfigError(f"{kept[0]}: the folder of a run stands alone, or name folders of single steps")
    if kept:
        steps = _kept_steps(kept[0])
    elif len(given) == 1 and least > 1:
        raise ConfigError(
            f"{given[0]}: keeps no weights by step ({WEIGHTS}/step_N); train with checkpoints.weights_every=N, or name "
            "two or more folders of steps"
        )
    else:
        steps = [RunStep(_number(folder), folder) for folder in given]
        _check_one_run(given)
    steps.sort(key=lambda each: each.step)
    for before, after in pairwise(steps):
        if before.step == after.step:
            raise ConfigError(
                f"{after.folder}: is step {after.step}, and so is {before.folder}; name one of them"
            )
    if len(steps) < least:
        raise ConfigError(
            f"{given[0]}: has {len(steps)} of the {least} or more steps that a trajectory needs"
        )
    return steps


def run_of(step: Path) -> Path:
    """The folder of the run that has kept this step in `weights`; of another model, its own folder."""
    found = step.resolve()
    return found.parents[1] if found.parent.name == WEIGHTS else found


def check_other_models(steps: Sequence[RunStep], start: Path, against: Sequence[Path]) -> None:
    """Raise a ConfigError if the start, or the end of "another" run, is the finished model of the run itself."""
    runs = {run_of(each.folder) for each in steps if each.folder.resolve().parent.name == WEIGHTS}
    if start.resolve() in runs:
        raise ConfigError(f"{start}: is the end of this run; give the model with which it began")
    for other in against:
        if other.resolve() in runs:
            raise ConfigError(f"{other}: is this run itself; give another run that began with {start}")


def is_start(start: Path, step: Path) -> bool | None:
    """Whether a run began with the model `start`, by the receipts of both; None if they do not say."""
    run = run_of(step)
    if not all((folder / RECEIPT).is_file() for folder in (start, run)):
        return None
    made = read_object(run / RECEIPT, CheckpointError)
    if made.get("kind") not in TRAINING:
        return None
    began = read_object(start / RECEIPT, CheckpointError).get("fingerprint")
    return began in dict(made.get("inputs", {})).values()


def _kept_steps(run: Path) -> list[RunStep]:
    folders = [each for each in (run / WEIGHTS).glob("step_*") if each.suffix not in UNFINISHED]
    steps = [RunStep(_number(each), each) for each in folders]
    # The finished model, unless the last of the kept steps is the same.
    if (run / CHECKPOINT / RECORD).is_file():
        last = read_state(run / CHECKPOINT).step
        if last not in [each.step for each in steps]:
            steps.append(RunStep(last, run))
    return steps


def _number(folder: Path) -> int:
    found = NUMBER.search(folder.absolute().name)
    if found:
        return int(found[1])
    record = find_model(folder) / CHECKPOINT
    if (record / RECORD).is_file():
        return read_state(record).step
    raise ConfigError(f"{folder}: its name has no number of a step; call it for example step_0000020")


def _check_one_run(given: Sequence[Path]) -> None:
    """Steps that a run of ours has kept must have the same run; of other folders nothing is known."""
    runs = {folder: run_of(folder) for folder in given if folder.resolve().parent.name == WEIGHTS}
    first = next(iter(runs.items()), None)
    for folder, run in runs.items():
        if first is not None and run != first[1]:
            raise ConfigError(
                f"{folder}: is a step of another run than {first[0]}; name the steps of one run"
            )
