"""The deep dry run of a `train` stage: one rank of its real training code, through one step in shapes only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from megatron_prism.data.document_bounds import DOCUMENTS
from megatron_prism.data.mixture import Mixture
from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.memory import stage_memory
from megatron_prism.platform.fake_device import META
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.dry_step import (
    RankReport,
    building,
    different_ranks,
    filling_micro_batches,
    one_rank,
    pipeline_stage,
)
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.memory import train_workload
from megatron_prism.training.micro_batches import SOURCE
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.training_run import build_trainer

# The shortest document of a row whose documents do not see each other.
SHORTEST_DOCUMENT = 256


class Shapes:
    """Reads micro-batches without numbers (`micro_batches.ReadsBatches`)."""

    def __init__(self, config: TrainConfig, count: int) -> None:
        self.config, self.count = config, count

    def batch(self, consumed_samples: int) -> list[dict[str, Tensor]]:
        return [self._one() for _ in range(self.count)]

    def _one(self) -> dict[str, Tensor]:
        rows, length = self.config.batch.micro_batch_size, self.config.batch.sequence_length
        one = {
            name: torch.empty(rows, length, dtype=torch.int64, device=META)
            for name in ("tokens", "labels", "position_ids")
        }
        one["loss_mask"] = torch.empty(rows, length, device=META)
        one[SOURCE] = torch.empty(rows, dtype=torch.int64, device=META)
        if self.config.intra_document:
            one[DOCUMENTS] = torch.from_numpy(numpy.stack([_documents(length)] * rows))
        return one


def _documents(length: int) -> Any:
    """The number of each token's document: the first has half of the row, the next half of the rest, and so on."""
    lengths = []
    while length > 2 * SHORTEST_DOCUMENT:
        lengths.append(length // 2)
        length -= lengths[-1]
    return numpy.repeat(numpy.arange(len(lengths) + 1), [*lengths, length]).astype(numpy.int32)


def buildable(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The config with what this machine can build, and a line for each thing that it replaces.

    Transformer Engine's layers have the same parameters as those of backend torch; its kernels, and FP8, need CUDA.
    """
    lines = []
    if config.backend != "torch":
        lines.append(f"backend={config.backend}: built with backend=torch, which has the same parameters")
    if config.fp8 is not None:
        lines.append(f"fp8={config.fp8}: built without FP8, which needs Transformer Engine")
    kernels, precision, megatron, further = without_libraries(
        config.kernels, config.precision, config.megatron
    )
    built = replace(
        config,
        backend="torch",
        fp8=None,
        compile=False,
        kernels=kernels,
        precision=precision,
        megatron=megatron,
    )
    return built, lines + further


def without_libraries(
    kernels: KernelSettings, precision: PrecisionSettings, megatron: MegatronBlock
) -> tuple[KernelSettings, PrecisionSettings, MegatronBlock, list[str]]:
    """The settings without what needs Transformer Engine, Apex or a GPU, and a line for each that changes bytes."""
    lines = []
    if kernels.gradient_accumulation_fusion:
        lines.append("kernels.gradient_accumulation_fusion: built without Apex's kernel")
    kernels = replace(
        kernels,
        gradient_accumulation_fusion=False,
        fused_swiglu=None,
        fused_rope=None,
        cp_comm_type="auto",
        attention_backend="auto",
    )
    plain = PrecisionSettings(grad_reduce_in_fp32=precision.grad_reduce_in_fp32)
    if precision.precision_aware_optimizer:
        lines.append("precision.precision_aware_optimizer: built with torch's AdamW, whose state is fp32")
    graphs = [name for name in megatron.transformer if "cuda_graph" in name or name == "use_te_rng_tracker"]
    if graphs:
        lines.append(f"megatron.transformer.{', '.join(graphs)}: built without")
    kept = {name: value for name, value in megatron.transformer.items() if name not in graphs}
    return kernels, plain, replace(megatron, transformer=kept), lines


def trained(config: TrainConfig) -> Architecture:
    """The architecture that is built."""
    return config.trained_architecture


def ranks_of(config: TrainConfig) -> list[int]:
    """The ranks whose dry runs differ."""
    return different_ranks(trained(config), config.layout)


def dry_run_rank(config: TrainConfig, rank: int, *, gpu: bool = True) -> RankReport:
    """Build what a rank of the stage builds, and take one step.

    Args:
        config: what `buildable` returned.
        rank: of the stage's processes.
        gpu: as in `dry_step.one_rank`.
    """
    batch = config.batch
    count = filling_micro_batches(config.parallel, batch.micro_batches(config.layout, batch.size_after(0)))
    with one_rank(config.parallel, rank, seed=config.seed, gpu=gpu) as counter:
        with building():
            trainer = build_trainer(config, initialize=False)
        trainer.source_count = len(Mixture.load(config.mixture).weights)
        with counter.passes(trainer.models):
            trainer.step(Shapes(config, count), 0, config.schedule.lr, counter.passes_end)
        return counter.report(
            rank,
            config.parallel,
            trainer.models,
            trainer.optimizer,
            planned=stage_memory(
                config.trained_architecture,
                config.layout,
                train_workload(config),
                pipeline_stage(rank, config.parallel),
            ),
        )
