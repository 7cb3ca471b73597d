"""The trainer: Megatron-Core's DDP, schedules and optimizer behind two methods, `step` and `evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import choose_backend
from megatron_prism.models.layers.pointwise import use_compiled
from megatron_prism.models.specs_te import require_fp8
from megatron_prism.planning.pipeline_split import with_split
from megatron_prism.platform.hardware import has_gpu
from megatron_prism.platform.process_groups import ParallelConfig, cuda_requests_on_cpu
from megatron_prism.training import parameter_gather
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.conditional_step import step_if
from megatron_prism.training.intra_document import check_intra_document
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.micro_batches import RankShare, ReadsBatches, place
from megatron_prism.training.optimizer import OptimizerSettings, build_optimizer, set_group_values
from megatron_prism.training.precision import PrecisionSettings, check_recipe_here
from megatron_prism.training.text_losses import LossSums, forward_step, sum_over_ranks
from megatron_prism.training.trainable import check_trainable
from megatron_prism.training.wrapped_model import build_chunks, connect


class Trainer:
    """This rank's part of a model and its optimizer.

    `backend`, `fp8`, `trainable`, `recompute`, `compile`, `intra_document`, `kernels`, `precision` and `megatron` mean
    the same as in `TrainConfig`. Without `initialize` the weights are undefined until they are loaded.

    A dataset is any sequence of dicts with `tokens`, `labels`, `loss_mask`, `position_ids`, each `[sequence_length]`,
    and optionally `dataset_id`, the number of the sample's source. `step` also accepts what reads whole batches itself.
    Needs a running `platform.process_groups.session`.

    Attributes:
        share: which samples of a step this rank works on.
        source_count: number of sources whose losses are summed separately; 1 sums all together.
        sums: the losses of the last step.
        seconds: how long the parts of the last step took. The loss and the norm of the gradients are read from the
            device, so the first two parts include its work; the update itself may end during the next step.
    """

    def __init__(
        self,
        architecture: Architecture,
        parallel: ParallelConfig,
        batch: BatchConfig,
        optimizer: OptimizerSettings,
        *,
        dtype: torch.dtype,
        backend: str = "auto",
        fp8: str | None = None,
        trainable: str = "all",
        recompute: str = "none",
        compile: bool = False,
        intra_document: bool = False,
        kernels: KernelSettings | None = None,
        precision: PrecisionSettings | None = None,
        megatron: MegatronBlock | None = None,
        initialize: bool = True,
    ) -> None:
        from megatron.core import parallel_state

        parallel = with_split(architecture, parallel, batch.sequence_length, recompute)
        parallel.check_sequence(batch.sequence_length)
        use_compiled(compile)
        check_trainable(trainable, architecture, parallel)
        batch.check_layout(parallel)
        kernels, precision = kernels or KernelSettings(), precision or PrecisionSettings()
        megatron = megatron or MegatronBlock()
        self.architecture, self.batch, self.parallel = architecture, batch, parallel
        self.backend = choose_backend(backend, architecture.is_hybrid)
        if intra_document:
            check_intra_document(self.backend, architecture.is_hybrid, parallel)
        gpu = has_gpu()
        megatron.check_here(gpu)
        if megatron.cuda_graphs:
            kernels = replace(kernels, overlap_param_gather=False)
        kernels.check(architecture, parallel, self.backend)
        fields = kernels.transformer_fields(architecture, parallel, self.backend, gpu)
        fields |= precision.transformer_fields(fp8) | megatron.transformer
        if fp8 is not None:
            require_fp8(fp8, self.backend)
            check_recipe_here(precision.fp8_recipe)
        self.joins_rows = intra_document and self.backend == "te"
        self.share = RankShare(batch, parallel, parallel_state.get_data_parallel_rank())
        self.source_count = 1
        self.sums = LossSums(0.0, 0.0, [])
        self.seconds: dict[str, float] = {}
        with megatron.named_in_errors():
            self.models = build_chunks(
                architecture,
                parallel,
                dtype,
                trainable=trainable,
                ddp_fields=kernels.ddp_fields(parallel, gpu) | precision.ddp_fields() | megatron.ddp,
                backend=self.backend,
                recompute=recompute,
                initialize=initialize,
                **fields,
            )
            self.optimizer = build_optimizer(
                self.models,
                optimizer,
                parallel,
                dtype,
                overlap_param_gather=self.models[0].ddp_config.overlap_param_gather,
                **(precision.optimizer_fields(fp8) | megatron.optimizer),
            )
        self.config = self.models[0].config
        self.weight_decay = optimizer.weight_decay
        connect(self.models, self.optimizer)

    def step(
        self,
        dataset: Any,
        consumed_samples: int,
        lr: float,
        accept: Callable[[float, float], bool] | None = None,
    ) -> tuple[float, float]:
        """One optimizer step on the next global batch; returns the mean loss per token and the gradient norm.

        The last pipeline stage computes the loss, and all ranks return it.

        Args:
            accept: takes both; if it returns False, on all ranks, weights and optimizer stay as they are.
        """
        began = time.perf_counter()
        if isinstance(dataset, ReadsBatches):
            batches = dataset.batch(consumed_samples)
        else:
            batches = self.share.read(dataset, consumed_samples, self.batch.size_after(consumed_samples))
        read = time.perf_counter()
        self.prepare_step(lr)
        self.sums = self._run(batches, forward_only=False)
        loss, computed = self.sums.mean, time.perf_counter()
        grad_norm = self.apply_gradients(None if accept is None else partial(accept, loss))
        self.seconds = {
            "data": read - began,
            "forward_backward": computed - read,
            "optimizer": time.perf_counter() - computed,
        }
        return loss, grad_norm

    def finish_update(self) -> None:
        """Gather the weights of the last step; before anything reads them outside of a training step, on all ranks."""
        parameter_gather.finish(self.models)

    @torch.no_grad()
    def evaluate(self, dataset: Any, batches: int) -> float:
        """Mean loss per token over the first `batches` global batches, which may have different numbers of tokens."""
        self.finish_update()
        for model in self.models:
            model.eval()
        size = self.batch.global_batch_size
        sums = [
            self._run(self.share.read(dataset, index * size, size), forward_only=True)
            for index in range(batches)
        ]
        return sum(each.total for each in sums) / sum(each.tokens for each in sums)

    def _run(self, batches: Sequence[dict[str, Any]], forward_only: bool) -> LossSums:
        """The losses of one global batch; all ranks return the same."""
        rows, length = self.batch.micro_batch_size, self.batch.sequence_length
        reports = self.run_micro_batches(
            lambda: (place(each, self.backend) for each in batches),
            partial(forward_step, self.source_count),
            count=len(batches),
            shape=(1, rows * length) if self.joins_rows else (rows, length),
            forward_only=forward_only,
        )
        total, tokens, *by_source = sum_over_ranks(
            [report["loss"] for report in reports], size=2 + 2 * self.source_count
        )
        count = self.source_count
        return LossSums(total, tokens, list(zip(by_source[:count], by_source[count:], strict=True)))

    def run_micro_batches(
        self,
        batches: Callable[[], Iterator[Any]],
        forward_step: Callable[..., Any],
        *,
        count: int,
        shape: tuple[int, int],
        forward_only: bool,
        models: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Forward (and backward) through Megatron's schedule for this pipeline.

        Args:
            batches: an iterator over this data-parallel rank's micro-batches; called once per model chunk.
            forward_step: (iterator, model) -> (output, loss function), as Megatron's schedules expect it.
            shape: (micro_batch_size, sequence_length) of every micro-batch.
            models: other model chunks with the same layout, for a forward pass; None for the trained model.

        Returns:
            the report of the loss function for each micro-batch; empty except on the last pipeline stage.
        """
        from megatron.core.pipeline_parallel import get_forward_backward_func

        chunks = self.models if models is None else list(models)
        iterators = [batches() for _ in chunks]
        with cuda_requests_on_cpu():
            reports: list[Any] = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iterators if len(chunks) > 1 else iterators[0],
                model=chunks if len(chunks) > 1 else chunks[0],
                num_microbatches=count,
                seq_length=shape[1],
                micro_batch_size=shape[0],
                forward_only=forward_only,
            )
        return reports

    def prepare_step(self, lr: float) -> None:
        """Set the learning rate and clear the gradients."""
        set_group_values(self.optimizer, lr, self.weight_decay)
        for model in self.models:
            model.train()
            model.zero_grad_buffer()
        self.optimizer.zero_grad()

    def apply_gradients(self, accept: Callable[[float], bool] | None = None) -> float:
        """Update the weights with the accumulated gradients; returns the norm of the gradients.

        Args:
            accept: takes the norm; if it returns False, on all ranks, weights and optimizer stay as they are.
        """
        with cuda_requests_on_cpu():
            return step_if(self.optimizer, accept or (lambda norm: True))
