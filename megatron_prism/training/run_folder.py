"""The output folder of a training run: checkpoints to resume from while it runs, and the finished model at its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.conversion.side_files.carry import carry_files
from megatron_prism.errors import CheckpointError, Requeue
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights, model_state
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, HF_FILES
from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX, RESUME
from megatron_prism.pipeline.run_record import read_run_record
from megatron_prism.platform.console import get_logger
from megatron_prism.training.checkpoint import Contents, TrainingState, restore, save_contents
from megatron_prism.training.checkpoint_saver import CheckpointSaver
from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.retention_watch import BASELINE
from megatron_prism.training.saved_state import (
    KEPT,
    RECORD,
    WEIGHTS,
    SavedState,
    clear_unfinished,
    prune,
    resumable_states,
    step_folder,
)
from megatron_prism.training.trainer import Trainer

METRICS = "metrics.jsonl"
# Files of a run that record its steps.
LOGS = (METRICS, "tensorboard", "answers", BASELINE)

log = get_logger(__name__)
T = TypeVar("T")


class RunFolder:
    """Loads and saves the state of one run; every rank makes the same calls.

    Args:
        out: the stage's output folder.
        steps: the step that ends the run.
        start: the folder that the run starts from; its side files go into every model folder. None for random weights.
        further_models: models that are saved with each checkpoint, such as a reference policy, as the chunks of this
            rank; the key is the name of their folder inside the checkpoint.

    Attributes:
        finished: whether the restored state is that of the finished run: what remains is the last evaluation.
    """

    def __init__(
        self,
        out: Path,
        trainer: Trainer,
        settings: CheckpointSettings | None = None,
        *,
        steps: int,
        start: Path | None = None,
        further_models: Mapping[str, list[Any]] | None = None,
    ) -> None:
        self.out, self.trainer, self.steps, self.start = out, trainer, steps, start
        self.settings = settings or CheckpointSettings()
        self.further_models = further_models or {}
        self.finished = False
        self.saver = CheckpointSaver(in_background=self.settings.in_background)

    def resume(self) -> TrainingState | None:
        """Restore the newest whole checkpoint of an interrupted run; None if there is none.

        A checkpoint that is damaged, or that a rank cannot read, is named in a warning, and all ranks use the one
        before it.

        Raises:
            CheckpointError: if a checkpoint is of another architecture or a newer format, or if none can be read.
        """
        problem: CheckpointError | None = None
        self.saver.wait()
        for saved in from_rank_0(lambda: usable_states(self.out, self.steps)):
            if saved.record.architecture:
                theirs = Architecture.from_json(dict(saved.record.architecture), str(saved.folder))
                self.trainer.architecture.require_same(theirs, str(saved.folder))
            try:
                state = self._restore(saved)
            except CheckpointError as found:
                problem = problem or found
                log.warning("%s; the checkpoint before it is used", found)
                continue
            if not saved.folder.is_relative_to(self.out):
                self._bring_logs(saved)
            self.finished = saved.ends(self.steps)
            if self.finished and dist.get_rank() == 0:
                forget_evaluation(self.out / METRICS, state.step)
            dist.barrier()
            return state
        if problem is not None:
            raise problem
        return None

    def load_start(self, start: Path, architecture: Architecture) -> None:
        """Load the weights of a Megatron or Hugging Face folder, and give them to the optimizer.

        Args:
            architecture: what the weights in `start` must be.

        Raises:
            ConfigError: if the folder holds another architecture.
        """
        if (start / ARCHITECTURE).is_file():
            architecture.require_same(Architecture.load(start / ARCHITECTURE), str(start))
            load_weights(self.trainer.models, start / CHECKPOINT)
        else:
            load_hf_weights(self.trainer.models, architecture, start)
        self.trainer.optimizer.reload_model_params()

    def save_step(self, state: TrainingState) -> None:
        """Write a checkpoint from which the run can resume, then remove those that are no longer kept."""
        every = self.settings.keep_every
        parent = KEPT if every and state.step % every == 0 else RESUME
        self._save(
            step_folder(self.out / parent, state.step),
            state,
            done=lambda: prune(self.out, self.settings.keep_last),
            make_room=lambda: prune(self.out, 1),
        )

    def after_step(self, state: TrainingState) -> None:
        """Call after each step: complete a save in the background, and write the weights if `weights_every` says so."""
        self.saver.poll()
        every = self.settings.weights_every
        if every and state.step % every == 0:
            self.trainer.finish_update()
            self.saver.save(
                step_folder(self.out / WEIGHTS, state.step),
                {CHECKPOINT: lambda: model_state(self.trainer.models)},
                label=f"step {state.step} | weights",
                complete=self._write_side_files,
                make_room=lambda: prune(self.out, 1),
            )

    def save_model(self, state: TrainingState) -> None:
        """Write the finished model: weights, architecture, and the side files of the folder the run started from.

        Call it right after the last step: from then on a killed run has nothing to train again.
        """
        if not self.finished:
            self.saver.wait()
            self.saver.in_background = False
            self._save(self.out / CHECKPOINT, state, final=True, make_room=lambda: prune(self.out, 1))
        if dist.get_rank() == 0:
            self._write_side_files(self.out)
        dist.barrier()

    def withdraw_model(self) -> None:
        """Give up the finished model, if there is one: the run goes on from the checkpoint before it."""
        if dist.get_rank() == 0:
            (self.out / CHECKPOINT / RECORD).unlink(missing_ok=True)
        dist.barrier()

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint to resume from; None if there is none. All ranks call this."""
        newest = self._newest()
        return None if newest is None else newest.step

    def newest_position(self) -> int:
        """The position in the data of the newest checkpoint; 0 if there is none. All ranks call this."""
        newest = self._newest()
        return 0 if newest is None else int(newest.record.progress["consumed_samples"])

    def _newest(self) -> SavedState | None:
        self.saver.wait()
        return next(iter(from_rank_0(lambda: resumable_states(self.out))), None)

    @contextmanager
    def stopped_after_saving(self) -> Iterator[None]:
        """A run that must stop in this block completes the save that is still being written."""
        try:
            yield
        except Requeue:
            self.wait()
            raise

    def wait(self) -> None:
        """Complete a save that is still being written; call before the run ends early."""
        self.saver.wait()

    def _bring_logs(self, saved: SavedState) -> None:
        """Begin the logs of this run with those of the finished run that it continues."""
        record = read_run_record(self.out)
        if dist.get_rank() == 0 and record is not None:
            shorter = Path(record.continues_from)
            for name in LOGS:
                if (shorter / name).is_dir():
                    shutil.copytree(shorter / name, self.out / name, dirs_exist_ok=True)
                elif (shorter / name).is_file():
                    shutil.copyfile(shorter / name, self.out / name)
        dist.barrier()

    def _restore(self, saved: SavedState) -> TrainingState:
        """Restore a checkpoint; if one rank fails, all raise a CheckpointError."""
        state, problem = TrainingState(), ""
        try:
            state = restore(saved, self.trainer.models, self.trainer.optimizer)
            for name, chunks in self.further_models.items():
                if (saved.folder / name).is_dir():
                    load_weights(chunks, saved.folder / name)
        except CheckpointError as found:
            problem = str(found)
        problems: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        if any(problems):
            raise CheckpointError(next(filter(None, problems)))
        return state

    def _save(
        self,
        folder: Path,
        state: TrainingState,
        *,
        final: bool = False,
        done: Callable[[], None] = lambda: None,
        make_room: Callable[[], None],
    ) -> None:
        keep = not final or self.settings.keep_optimizer
        contents = Contents(
            self.trainer.models,
            self.trainer.optimizer if keep else None,
            state,
            optimizer_format=self.settings.optimizer_format,
            further_models=self.further_models if keep else None,
            final_of=self.steps if final else 0,
            architecture=asdict(self.trainer.architecture),
        )
        save_contents(self.saver, folder, contents, done=done, make_room=make_room)

    def _write_side_files(self, folder: Path) -> None:
        self.trainer.architecture.save(folder / ARCHITECTURE)
        if self.start is not None and (files := hf_files(self.start)) is not None:
            for remark in carry_files(files, folder / HF_FILES):
                log.warning(remark)


def usable_states(out: Path, steps: int) -> list[SavedState]:
    """The states from which a run of `steps` steps can go on, newest first.

    They are those in its own folder, or else those of the finished run that it continues. What killed saves left is
    removed.
    """
    clear_unfinished(out)
    own = [saved for saved in resumable_states(out) if saved.serves(steps)]
    record = read_run_record(out)
    if own or record is None or not record.continues_from:
        return own
    found = [saved for saved in resumable_states(Path(record.continues_from)) if saved.serves(steps)]
    if not found:
        log.warning("%s has no training state, so the run begins at step 1", record.continues_from)
    return found


def from_rank_0(function: Callable[[], T]) -> T:
    """The result of `function` on rank 0, on all ranks; a CheckpointError there is raised on all."""
    result: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            result[0] = function()
        except CheckpointError as problem:
            result[1] = str(problem)
    dist.broadcast_object_list(result, 0)
    if result[1] is not None:
        raise CheckpointError(result[1])
    found: T = result[0]
    return found


def forget_evaluation(metrics: Path, step: int) -> None:
    """Remove the lines of an evaluation after the last step, which a finished run that was not sealed makes again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines(keepends=True):
        # The last line may be incomplete.
        record: dict[str, Any] = json.loads(line) if line.endswith("}\n") else {}
        if record and (record["step"] < step or not {"validation", "evaluation"} & set(record)):
            kept.append(line)
    temporary = metrics.with_name(metrics.name + PARTIAL_SUFFIX)
    temporary.write_text("".join(kept))
    temporary.replace(metrics)


def hf_files(start: Path) -> Path | None:
    """The folder with the Hugging Face config and tokenizer that came with the weights in `start`, if any did."""
    if not (start / ARCHITECTURE).is_file():
        return start
    return start / HF_FILES if (start / HF_FILES).is_dir() else None
