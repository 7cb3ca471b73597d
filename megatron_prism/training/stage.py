"""The `train` stage: tokens and a mixture in, a checkpoint out. Pretraining and mid-training differ in config only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.mixture import YAML_SUFFIXES, Mixture
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import BACKENDS, Architecture, check_recompute
from megatron_prism.models.extension import ContextExtension, describe, extended
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT
from megatron_prism.pipeline.artifact import Artifact, folder_stamp
from megatron_prism.pipeline.config import one_of, positive
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.trainable import check_trainable

FP8_FORMATS = ("hybrid", "e4m3")


@dataclass
class Train(Stage):
    """Inputs: `tokens`, `tokenizer`, and optionally `init`, a train or import artifact whose weights to start from.

    Attributes:
        architecture: of the model that training starts from.
        extension: more positions for that model, and other rotary settings; the result has the extended architecture.
        mixture: name of a packaged mixture, or path of a YAML file.
        init_from: a Hugging Face or Megatron folder to start from, in place of `init`; each rank reads its part.
        dtype: 'fp32', or 'bf16' with fp32 main weights in the optimizer.
        fp8: 'hybrid' or 'e4m3', Megatron's FP8 formats, with bf16 weights; needs Transformer Engine.
        backend: 'te', 'torch', or 'auto': te where this machine has what it needs.
        trainable: 'all' parameters, or 'attention': the query, key, value and output projections of self-attention;
            every other tensor stays bit for bit. TFLOP/s and MFU count the work of training all.
        recompute: 'none', or 'full': a layer keeps its input and computes itself again in the backward pass, which
            takes a third more work and far less memory, and gives the same numbers.
        validation_batches: global batches of held-out text per source.
        validate_every: steps between validations; 0 validates at the end only.
        checkpoint_every: steps between checkpoints to resume from; 0 writes none before the end.
        log_every: steps between lines on the console; metrics.jsonl and TensorBoard get every step.
    """

    kind: ClassVar[str] = "train"
    version: ClassVar[int] = 2  # 1 decayed norms and biases too
    resumable: ClassVar[bool] = True

    architecture: Architecture
    mixture: str
    init_from: str = ""
    extension: ContextExtension | None = None
    steps: int = 100
    seed: int = 1
    dtype: str = "fp32"
    fp8: str | None = None
    backend: str = "auto"
    trainable: str = "all"
    recompute: str = tuning("none")
    batch: BatchConfig = field(default_factory=BatchConfig)
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    validation_batches: int = 4
    validate_every: int = 0
    checkpoint_every: int = tuning(0)
    log_every: int = tuning(1)

    def __post_init__(self) -> None:
        positive(self, "steps", "validation_batches", "log_every")
        one_of(self.dtype, ("fp32", "bf16"), "dtype")
        if Path(self.mixture).suffix in YAML_SUFFIXES:
            # Launched workers may run in another folder.
            self.mixture = str(Path(self.mixture).resolve())
        one_of(self.backend, BACKENDS, "backend")
        if self.fp8 is not None:
            one_of(self.fp8, FP8_FORMATS, "fp8")
            if self.dtype != "bf16":
                raise ConfigError(f"fp8={self.fp8}: needs dtype=bf16, not {self.dtype}")
        if self.init_from:
            self.init_from = str(Path(self.init_from).resolve())
        trained = self.trained_architecture
        if self.batch.sequence_length > trained.max_position_embeddings:
            owner, remedy = (
                ("architecture", "; an `extension` gives it more")
                if self.extension is None
                else ("extension", "")
            )
            raise ConfigError(
                f"batch.sequence_length={self.batch.sequence_length} is longer than "
                f"{owner}.max_position_embeddings={trained.max_position_embeddings}{remedy}"
            )
        check_trainable(self.trainable, trained, self.parallel)
        check_recompute(self.recompute, trained, self.fp8)
        self.architecture.check_parallel(self.parallel)
        self.parallel.check_sequence(self.batch.sequence_length)
        self.batch.micro_batches(self.parallel)

    @property
    def world_size(self) -> int:
        return self.parallel.world_size

    @property
    def trained_architecture(self) -> Architecture:
        """Of the model that comes out: the one training starts from, extended if the config says so."""
        return extended(self.architecture, self.extension) if self.extension else self.architecture

    def identity(self) -> dict[str, Any]:
        """With the mixture's weights in place of its name, and the files of `init_from`: edits make another model."""
        files = folder_stamp(Path(self.init_from)) if self.init_from else []
        return super().identity() | {"mixture": Mixture.load(self.mixture).weights, "init_files": files}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        from megatron_prism.data.text_record import check_model, check_tokens
        from megatron_prism.data.tokenizer import Tokenizer
        from megatron_prism.platform.process_groups import session

        tokenizer = Tokenizer.load_for(inputs["tokenizer"].path, self.architecture.vocab_size)
        text = check_tokens(inputs["tokens"].path, tokenizer, inputs["tokenizer"].path)
        if "init" in inputs:
            check_model(inputs["init"], tokenizer)
        if self.extension is not None and self._start(inputs) is None:
            raise ConfigError(
                "extension: there is no model to extend; give the stage an 'init', or init_from=DIR"
            )
        with session(self.parallel, self.seed):
            metrics = self._train(inputs, out, tokenizer)
        return metrics if text is None else metrics | {"text": text}

    def _start(self, inputs: Mapping[str, Artifact]) -> Path | None:
        """The folder whose weights to start from: the `init` artifact, or `init_from`."""
        if "init" in inputs and self.init_from:
            raise ConfigError(f"init_from={self.init_from}: the recipe gives this stage an 'init' already")
        if "init" in inputs:
            return inputs["init"].path
        return Path(self.init_from) if self.init_from else None

    def _load_initial(self, trainer: Any, start: Path) -> None:
        from megatron_prism.conversion.init_from_hf import load_hf_weights
        from megatron_prism.models.checkpoint_io import load_weights
        from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT

        if (start / ARCHITECTURE).is_file():
            self.architecture.require_same(Architecture.load(start / ARCHITECTURE), str(start))
            load_weights(trainer.models, start / CHECKPOINT)
        else:
            load_hf_weights(trainer.models, self.architecture, start)
        trainer.optimizer.reload_model_params()

    def _train(self, inputs: Mapping[str, Artifact], out: Path, tokenizer: Any) -> dict[str, Any]:
        import torch
        import torch.distributed as dist

        from megatron_prism.conversion.side_files.carry import carry_files
        from megatron_prism.data.blend import training_dataset
        from megatron_prism.models.model_folder import HF_FILES
        from megatron_prism.platform.hardware import peak, peak_memory_bytes
        from megatron_prism.training.checkpoint import (
            TrainingState,
            latest_checkpoint,
            load_checkpoint,
            save_checkpoint,
        )
        from megatron_prism.training.loop import Trainer
        from megatron_prism.training.metrics import MetricsLog, StepRecord, flops_per_token, logger

        dtype = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        architecture = self.trained_architecture
        trainer = Trainer(
            architecture,
            self.parallel,
            self.batch,
            self.optimizer,
            dtype,
            self.backend,
            self.fp8,
            self.trainable,
            self.recompute,
        )
        checkpoints, state = out / "checkpoints", TrainingState()
        start = self._start(inputs)
        if resume := latest_checkpoint(checkpoints):
            state = load_checkpoint(resume, trainer.models, trainer.optimizer)
        elif start is not None:
            self._load_initial(trainer, start)

        tokens = inputs["tokens"].path
        weights = Mixture.load(self.mixture).weights
        size, length = self.batch.global_batch_size, self.batch.sequence_length
        cache = out / "index_cache"

        def dataset(split: str, shares: Mapping[str, float], samples: int) -> Any:
            return training_dataset(tokens, split, shares, length, samples, self.seed, cache, tokenizer)

        training = dataset("train", weights, self.steps * size)
        held_out = {
            source: dataset("valid", {source: 1.0}, self.validation_batches * size) for source in weights
        }

        def validate() -> dict[str, float]:
            return {s: trainer.evaluate(d, self.validation_batches) for s, d in held_out.items()}

        rank_zero = dist.get_rank() == 0
        top = peak(self.dtype)
        cost = flops_per_token(architecture, length)
        if rank_zero and self.extension is not None:
            logger.info("extension: %s", describe(self.architecture, architecture))
        log = MetricsLog(out, self.steps, top, state.step, self.log_every) if rank_zero else None
        began, first, loss = time.perf_counter(), state.step, float("nan")
        while state.step < self.steps:
            clock = time.perf_counter()
            lr = self.schedule.at(state.step, self.steps)
            loss, grad_norm = trainer.step(training, state.consumed_samples, lr)
            state.step += 1
            state.consumed_samples += size
            speed = size * length / (time.perf_counter() - clock)
            tflops = cost * speed / self.world_size / 1e12
            if log:
                log.step(
                    StepRecord(
                        step=state.step,
                        consumed_tokens=state.consumed_samples * length,
                        loss=loss,
                        lr=lr,
                        grad_norm=grad_norm,
                        tokens_per_second=round(speed, 1),
                        tflops=tflops,
                        mfu=tflops * 1e12 / top.flops_per_second,
                    )
                )
            if self.validate_every and state.step % self.validate_every == 0 and state.step < self.steps:
                losses = validate()
                if log:
                    log.validation(state.step, losses)
            if self.checkpoint_every and state.step % self.checkpoint_every == 0 and state.step < self.steps:
                save_checkpoint(
                    checkpoints / f"step_{state.step:07d}", trainer.models, trainer.optimizer, state
                )
        seconds = time.perf_counter() - began
        validation = validate()
        save_checkpoint(out / CHECKPOINT, trainer.models, trainer.optimizer, state)
        speed = (state.step - first) * size * length / seconds if state.step > first else 0.0
        if log:
            log.validation(state.step, validation)
            log.close()
            architecture.save(out / ARCHITECTURE)
            if start is not None and (files := _files_of(start)) is not None:
                for remark in carry_files(files, out / HF_FILES):
                    logger.warning(remark)
            shutil.rmtree(checkpoints, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
        dist.barrier()
        return {
            "loss": loss,
            "validation": validation,
            "steps": state.step,
            "tokens": state.consumed_samples * length,
            "tokens_per_second": round(speed, 1),
            "mfu": cost * speed / self.world_size / top.flops_per_second,
            "peak": top.name,
            "parameters": _parameters(trainer.models),
            "trainable_parameters": _parameters(trainer.models, trainable=True),
            "peak_memory_gib": round(peak_memory_bytes() / 2**30, 3),
        }


def _files_of(start: Path) -> Path | None:
    """The config and tokenizer that came with the weights a run starts from."""
    from megatron_prism.models.model_folder import ARCHITECTURE, HF_FILES

    if not (start / ARCHITECTURE).is_file():
        return start
    return start / HF_FILES if (start / HF_FILES).is_dir() else None


def _parameters(models: list[Any], trainable: bool = False) -> int:
    """Parameters of the whole model: each rank's share, summed over tensor and pipeline ranks without replicas.

    Args:
        trainable: count only those that training changes.
    """
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    first = parallel_state.is_pipeline_first_stage()
    count = 0
    for model in models:
        for name, parameter in model.module.named_parameters():
            replica = not getattr(parameter, "tensor_model_parallel", False) and tensor_rank != 0
            tied_copy = getattr(parameter, "shared_embedding", False) and not first and "output_layer" in name
            skipped = replica or tied_copy or (trainable and not parameter.requires_grad)
            count += 0 if skipped else parameter.numel()
    total = torch.tensor([count], dtype=torch.int64)
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return int(total.item())
