"""The steps of a run on text, with what is measured, logged and validated between them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from megatron_prism.errors import TrainingError
from megatron_prism.models.extension import describe
from megatron_prism.planning.flops import flops_per_token
from megatron_prism.platform.hardware import memory_gib, peak, peak_memory_bytes
from megatron_prism.platform.profiling import profiled
from megatron_prism.training.bad_steps import BadSteps
from megatron_prism.training.checkpoint import TrainingState
from megatron_prism.training.component_norms import ComponentNorms
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.metrics import MetricsLog, StepRecord, last_step, logger
from megatron_prism.training.parameter_count import count_parameters
from megatron_prism.training.retention_watch import Retention
from megatron_prism.training.run_folder import RunFolder
from megatron_prism.training.text_data import TextData
from megatron_prism.training.trackers import open_trackers


class TextRun:
    """The steps of a run and its log, which only rank 0 writes."""

    def __init__(self, config: TrainConfig, folder: RunFolder, data: TextData, state: TrainingState) -> None:
        self.config, self.folder, self.data, self.state = config, folder, data, state
        self.trainer, out = folder.trainer, folder.out
        self.peak = peak(config.dtype)
        self.flops = flops_per_token(config.trained_architecture, config.batch.sequence_length)
        last = last_step(out, state.step)
        self.loss, self.speed = last.get("loss", math.nan), last.get("tokens_per_second", 0.0)
        # The log removes the lines after the checkpoint, so all ranks must have read it before it opens.
        dist.barrier()
        self.log: MetricsLog | None = None
        if dist.get_rank() == 0:
            if config.extension is not None:
                logger.info("extension: %s", describe(config.architecture, config.trained_architecture))
            self.log = MetricsLog(
                out,
                steps=config.steps,
                peak=self.peak,
                resume_step=state.step,
                log_every=config.log_every,
                trackers=open_trackers(config.logging, out),
            )
        self.bad_steps = BadSteps(
            config.guard,
            folder,
            state,
            sources=list(data.validation),
            write=self.log.write if self.log else lambda record: None,
        )
        self.retention = Retention(
            config.watch, self._retained_and_learned, out=out, writes=dist.get_rank() == 0
        )
        every = config.logging.component_norms_every
        self.norms = ComponentNorms(self.trainer.models, self.trainer.optimizer) if every else None
        self.component_norms: dict[str, float] = {}
        self.save_seconds = 0.0
        self.first_sample, self.began = state.consumed_samples, time.perf_counter()

    def step(self) -> bool:
        """One optimizer step, logged; always asks for the next one."""
        began = time.perf_counter()
        before = TrainingState(self.state.step, self.state.consumed_samples)
        size = self.config.batch.size_after(before.consumed_samples)
        lr = self.config.schedule.at(before.step, self.config.steps)
        self.state.step, self.state.consumed_samples = before.step + 1, before.consumed_samples + size
        if self.bad_steps.skips_batch(before):
            return True
        with profiled(self.state.step, self.config.logging.profile_steps, self.folder.out):
            loss, grad_norm = self.trainer.step(self.data, before.consumed_samples, lr, self._accept)
        if not self.bad_steps.handle(before, self.data.training, size):
            return True
        self.loss = loss
        speed = self._tokens_since(before.consumed_samples) / (time.perf_counter() - began)
        if self.log:
            tflops = self.flops * speed / self.config.parallel.world_size / 1e12
            self.log.step(
                StepRecord(
                    step=self.state.step,
                    consumed_tokens=self.state.consumed_samples * self.config.batch.sequence_length,
                    loss=self.loss,
                    lr=lr,
                    grad_norm=grad_norm,
                    tokens_per_second=round(speed, 1),
                    tflops=tflops,
                    mfu=tflops * 1e12 / self.peak.flops_per_second,
                    **self._measurements(),
                )
            )
        return self._remembers()

    def _remembers(self) -> bool:
        """Watch what the model forgets; whether the run may go on."""
        watch = self.retention
        if not watch.due(self.state.step):
            return True
        found = watch.check(self.state.step)
        if self.log:
            self.log.retention(self.state.step, found)
            if watch.stopped:
                logger.warning(watch.stopped)
        return not watch.stopped

    def measure_retention_again(self) -> None:
        """What the watch found after the last step of a run that was killed then; the log has it already."""
        if self.retention.due(self.state.step):
            self.retention.check(self.state.step)

    def _retained_and_learned(self) -> tuple[dict[str, float], dict[str, float]]:
        batches = min(self.config.watch.batches, self.config.validation_batches)
        kept = {k: self.trainer.evaluate(v, self.config.watch.batches) for k, v in self.data.retained.items()}
        learned = {k: self.trainer.evaluate(v, batches) for k, v in self.data.validation.items()}
        return kept, learned

    def _accept(self, loss: float, grad_norm: float) -> bool:
        """The guard's decision on an update; the gradients are complete here, and not clipped yet."""
        self.component_norms = {}
        if self.norms and self.state.step % self.config.logging.component_norms_every == 0:
            self.component_norms = self.norms.measure()
        return self.bad_steps.guard.accept(loss, grad_norm)

    def _measurements(self) -> dict[str, dict[str, float]]:
        """What a step's record has besides its loss and speed."""
        by_source = dict(zip(self.data.sources, self.trainer.sums.by_source, strict=True))
        seconds = self.trainer.seconds | ({"checkpoint": self.save_seconds} if self.save_seconds else {})
        self.save_seconds = 0.0
        return {
            "source_loss": {name: total / count for name, (total, count) in by_source.items() if count},
            "source_tokens": {
                name: int(count) for name, (_, count) in by_source.items() if math.isfinite(count)
            },
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "memory_gib": memory_gib(),
            "component_norms": self.component_norms,
        }

    def validate(self) -> dict[str, float]:
        """The validation loss of every source, logged."""
        batches = self.config.validation_batches
        losses = {
            source: self.trainer.evaluate(data, batches) for source, data in self.data.validation.items()
        }
        if self.log:
            self.log.validation(self.state.step, losses)
        return losses

    def save(self) -> None:
        """Write a checkpoint, unless the last update was not applied: the newest one is then before the bad steps."""
        guard = self.bad_steps.guard
        if not guard.streak:
            self.state.guard = guard.state()
            began = time.perf_counter()
            self.folder.save_step(self.state)
            self.save_seconds = time.perf_counter() - began

    def close(self) -> None:
        """Close the log."""
        if self.log:
            self.log.close()

    def after_step(self) -> None:
        self.folder.after_step(self.state)

    def require_finite(self, losses: Mapping[str, float]) -> None:
        """Raise a TrainingError if a loss is not finite: the run is not finished then, and its model is not kept."""
        for name, loss in losses.items():
            if not math.isfinite(loss):
                self.folder.withdraw_model()
                raise TrainingError(
                    f"the loss of {name} is {loss}, so the run is not finished; the checkpoint of step "
                    f"{self.folder.newest_step()} is kept in {self.folder.out}"
                )

    def finish(self) -> dict[str, Any]:
        """Validate, close the log, and return the metrics of the receipt.

        Raises:
            TrainingError: if a loss is not finite.
        """
        seconds = time.perf_counter() - self.began
        tokens = self._tokens_since(self.first_sample)
        # A run that was killed after its last step has no steps left to measure.
        speed = tokens / seconds if tokens else self.speed
        validation = self.validate()
        self.close()
        self.require_finite({f"validation on {source}": loss for source, loss in validation.items()})
        models = self.trainer.models
        return {
            "loss": self.loss,
            "validation": validation,
            "steps": self.state.step,
            "skipped_steps": self.bad_steps.guard.skipped,
            "tokens": self.state.consumed_samples * self.config.batch.sequence_length,
            "tokens_per_second": round(speed, 1),
            "mfu": self.flops * speed / self.config.parallel.world_size / self.peak.flops_per_second,
            "peak": self.peak.name,
            "parameters": count_parameters(models),
            "trainable_parameters": count_parameters(models, trainable=True),
            "peak_memory_gib": round(peak_memory_bytes() / 2**30, 3),
            **({"retention": self.retention.last} if self.retention.last else {}),
            **({"stopped": self.retention.stopped} if self.retention.stopped else {}),
        }

    def _tokens_since(self, sample: int) -> int:
        return (self.state.consumed_samples - sample) * self.config.batch.sequence_length
