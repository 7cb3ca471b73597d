"""The output folder of a training run: checkpoints to resume from while it runs, and the finished model at its end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.conversion.side_files.carry import carry_files
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, HF_FILES
from megatron_prism.pipeline.run_record import read_run_record
from megatron_prism.platform.console import get_logger, is_rank_zero
from megatron_prism.training.checkpoint import (
    STATE,
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    saved_state,
)
from megatron_prism.training.prolonging import CHECKPOINTS
from megatron_prism.training.trainer import Trainer

# Files of a run that record its steps.
LOGS = ("metrics.jsonl", "tensorboard", "answers")

log = get_logger(__name__)


class RunFolder:
    """Loads and saves the state of one run; every rank makes the same calls.

    Args:
        out: the stage's output folder.
        further_models: models that are saved with each checkpoint, such as a reference policy, as the chunks of this
            rank; the key is the name of their folder inside the checkpoint.
    """

    def __init__(
        self, out: Path, trainer: Trainer, further_models: Mapping[str, list[Any]] | None = None
    ) -> None:
        self.out, self.trainer = out, trainer
        self.further_models = further_models or {}

    def resume(self) -> TrainingState | None:
        """Restore the newest checkpoint of an interrupted run; None if the run has not written one yet."""
        newest = resume_point(self.out)
        if newest is None:
            return None
        if newest.parent != self.out / CHECKPOINTS:
            self._bring_logs(newest.parent)
        state = load_checkpoint(newest, self.trainer.models, self.trainer.optimizer)
        for name, chunks in self.further_models.items():
            load_weights(chunks, newest / name)
        return state

    def _bring_logs(self, shorter: Path) -> None:
        """Begin the logs of this run with those of the finished run that it continues."""
        if dist.get_rank() == 0:
            for name in LOGS:
                if (shorter / name).is_dir():
                    shutil.copytree(shorter / name, self.out / name, dirs_exist_ok=True)
                elif (shorter / name).is_file():
                    shutil.copyfile(shorter / name, self.out / name)
        dist.barrier()

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

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint to resume from; None if there is none."""
        newest = latest_checkpoint(self.out / CHECKPOINTS)
        return None if newest is None else saved_state(newest).step

    def newest_position(self) -> int:
        """The position in the data of the newest checkpoint; 0 if there is none."""
        newest = latest_checkpoint(self.out / CHECKPOINTS)
        return 0 if newest is None else saved_state(newest).consumed_samples

    def save_step(self, state: TrainingState) -> None:
        """Write a checkpoint from which the run can resume."""
        self._save(self.out / CHECKPOINTS / f"step_{state.step:07d}", state)

    def save_model(self, state: TrainingState, architecture: Architecture, start: Path | None) -> None:
        """Write the finished model: weights, architecture, and the side files of the folder the run started from."""
        self._save(self.out / CHECKPOINT, state)
        if dist.get_rank() != 0:
            return
        architecture.save(self.out / ARCHITECTURE)
        if start is not None and (files := hf_files(start)) is not None:
            for remark in carry_files(files, self.out / HF_FILES):
                log.warning(remark)

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints to resume from."""
        if dist.get_rank() == 0:
            shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)

    def _save(self, folder: Path, state: TrainingState) -> None:
        save_checkpoint(
            folder,
            self.trainer.models,
            self.trainer.optimizer,
            state,
            further_models=self.further_models,
        )


def resume_point(out: Path) -> Path | None:
    """The training state to go on from: the run's newest checkpoint, or that of the finished run that it continues."""
    newest = latest_checkpoint(out / CHECKPOINTS)
    if newest is not None:
        return newest
    record = read_run_record(out)
    if record is None or not record.continues_from:
        return None
    finished = Path(record.continues_from) / CHECKPOINT
    if (finished / STATE).is_file():
        return finished
    if is_rank_zero():
        log.warning("%s is gone, so the run begins at step 1", finished)
    return None


def hf_files(start: Path) -> Path | None:
    """The folder with the Hugging Face config and tokenizer that came with the weights in `start`, if any did."""
    if not (start / ARCHITECTURE).is_file():
        return start
    return start / HF_FILES if (start / HF_FILES).is_dir() else None
