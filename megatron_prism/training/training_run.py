"""The body of the `train` stage, inside its process groups: build, resume or load, train, validate, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import CheckpointError
from megatron_prism.pipeline.artifact import RESUME
from megatron_prism.training.bad_steps import RollBack
from megatron_prism.training.checkpoint import TrainingState
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.loop import run_steps
from megatron_prism.training.run_folder import RunFolder, from_rank_0, usable_states
from megatron_prism.training.stopping import Stopping
from megatron_prism.training.text_data import TextData
from megatron_prism.training.text_run import TextRun
from megatron_prism.training.trainer import Trainer


def train_on_text(
    config: TrainConfig,
    tokens: Path,
    tokenizer: Tokenizer,
    *,
    start: Path | None,
    out: Path,
    stopping: Stopping,
) -> dict[str, Any]:
    """Train to the last step and leave the model in `out`; returns the metrics of the receipt.

    Args:
        tokens: folder of tokenized text.
        start: folder with the weights to start from; None for random weights.
        stopping: asked before every step whether the run must stop.

    Raises:
        Requeue: if it must stop; its state is saved.
    """
    config.logging.check_installed()
    fresh = start is None and not from_rank_0(lambda: usable_states(out, config.steps))
    trainer = build_trainer(config, initialize=fresh)
    folder = RunFolder(out, trainer, config.checkpoints, steps=config.steps, start=start)
    state = TrainingState() if fresh else _first_state(config, folder, start)
    data = TextData(config, trainer.share, tokens=tokens, tokenizer=tokenizer, out=out)
    trainer.source_count = len(data.sources)
    try:
        while True:
            run = TextRun(config, folder, data, state)
            if folder.finished:
                # Killed after its last step, which may have come before `steps`.
                run.measure_retention_again()
                break
            try:
                with folder.stopped_after_saving():
                    run_steps(
                        state,
                        config.steps,
                        take_step=run.step,
                        evaluate=run.validate,
                        evaluate_every=config.validate_every,
                        save=run.save,
                        checkpoint_every=config.checkpoint_every,
                        stopping=stopping,
                        after_step=run.after_step,
                    )
                break
            except RollBack:
                run.close()
                state = _first_state(config, folder, start)
        run.require_finite({"the last step": run.loss})
        folder.save_model(state)
        metrics = run.finish()
    finally:
        data.close()
    data.remove_indices()
    return metrics


def build_trainer(config: TrainConfig, initialize: bool) -> Trainer:
    """This rank's part of the model and its optimizer; needs a running session."""
    return Trainer(
        config.trained_architecture,
        config.parallel,
        config.batch,
        config.optimizer,
        dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float32,
        backend=config.backend,
        fp8=config.fp8,
        trainable=config.trainable,
        recompute=config.recompute,
        compile=config.compile,
        intra_document=config.intra_document,
        kernels=config.kernels,
        precision=config.precision,
        megatron=config.megatron,
        initialize=initialize,
    )


def _first_state(config: TrainConfig, folder: RunFolder, start: Path | None) -> TrainingState:
    """The state after the newest checkpoint, or step 0 with the weights of `start`.

    Raises:
        CheckpointError: if there is neither, so that the weights would stay undefined.
    """
    state = folder.resume()
    if state is not None:
        return state
    if start is None:
        raise CheckpointError(
            f"{folder.out / RESUME}: no checkpoint could be loaded; remove the folder to start again"
        )
    folder.load_start(start, config.architecture)
    return TrainingState()
