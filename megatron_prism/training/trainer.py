"""The trainer: Megatron-Core's DDP, schedules and optimizer behind two methods, `step` and `evaluate`."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model, choose_backend
from megatron_prism.models.layers.output_layer import install_vocabulary_limit
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import ParallelConfig, cuda_requests_on_cpu
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.conditional_step import step_if
from megatron_prism.training.intra_document import PACKED, check_intra_document, place_documents
from megatron_prism.training.optimizer import OptimizerSettings, build_optimizer, set_group_values
from megatron_prism.training.trainable import check_trainable, freeze


class Trainer:
    """This rank's part of a model and its optimizer.

    `backend`, `fp8`, `trainable`, `recompute` and `intra_document` mean the same as in `TrainConfig`. Without
    `initialize` the weights are undefined until they are loaded.

    A dataset is any sequence of dicts with `tokens`, `labels`, `loss_mask`, `position_ids`, each `[sequence_length]`.
    Needs a running `platform.process_groups.session`.
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
        intra_document: bool = False,
        initialize: bool = True,
    ) -> None:
        from megatron.core import parallel_state
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
            finalize_model_grads,
        )
        from megatron.core.transformer.enums import ModelType

        parallel.check_sequence(batch.sequence_length)
        check_trainable(trainable, architecture, parallel)
        self.batch, self.parallel = batch, parallel
        self.backend = choose_backend(backend, architecture.is_hybrid)
        if intra_document:
            check_intra_document(self.backend, architecture.is_hybrid, parallel)
        self.joins_rows = intra_document and self.backend == "te"
        self.micro_batches = batch.micro_batches(parallel)
        self.data_rank = parallel_state.get_data_parallel_rank()
        virtual = parallel.virtual_pipeline_model_parallel_size
        self.models: list[Any] = []
        for stage in range(virtual or 1):
            model = build_model(
                architecture,
                dtype,
                parallel,
                vp_stage=stage if virtual else None,
                backend=self.backend,
                recompute=recompute,
                calculate_per_token_loss=True,
                fp8=fp8,
                initialize=initialize,
            )
            model.model_type = ModelType.encoder_or_decoder
            if dtype is torch.bfloat16:
                # Mamba's A_log and D are converted too, as upstream does; the optimizer's main weights stay fp32.
                model.bfloat16()
            if architecture.tie_word_embeddings and parallel.pipeline_model_parallel_size > 1:
                with cuda_requests_on_cpu():
                    model.setup_embeddings_and_output_layer()
            if model.post_process and model.vocab_size > architecture.vocab_size:
                # Without this, the rows that fill up the last tensor-parallel rank would make the loss depend on the
                # layout.
                install_vocabulary_limit(model.output_layer, architecture.vocab_size)
            freeze(model, trainable)
            ddp = DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=parallel.use_distributed_optimizer
            )
            self.models.append(DistributedDataParallel(model.config, ddp, model, disable_bucketing=stage > 0))
        self.config = self.models[0].config
        self.optimizer = build_optimizer(self.models, optimizer, parallel, dtype)
        self.weight_decay = optimizer.weight_decay
        # The reference is weak: if a config held the optimizer, the model and its process groups would never be freed.
        scale_loss = weakref.WeakMethod(self.optimizer.scale_loss)
        for model in self.models:
            model.config.finalize_model_grads_func = finalize_model_grads
            model.config.grad_scale_func = partial(_call, scale_loss)

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
        self.prepare_step(lr)
        total, tokens = self._run(dataset, consumed_samples, forward_only=False)
        loss = total / tokens if tokens else math.nan
        return loss, self.apply_gradients(None if accept is None else partial(accept, loss))

    @torch.no_grad()
    def evaluate(self, dataset: Any, batches: int) -> float:
        """Mean loss per token over the first `batches` global batches, which may have different numbers of tokens."""
        for model in self.models:
            model.eval()
        size = self.batch.global_batch_size
        sums = [self._run(dataset, i * size, forward_only=True) for i in range(batches)]
        return sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)

    def _run(self, dataset: Any, first_sample: int, forward_only: bool) -> tuple[float, float]:
        """The summed loss of one global batch, and the number of tokens that it is summed over."""
        rows, length = self.batch.micro_batch_size, self.batch.sequence_length
        reports = self.run_micro_batches(
            lambda: self._micro_batches(dataset, first_sample),
            _forward_step,
            count=self.micro_batches,
            shape=(1, rows * length) if self.joins_rows else (rows, length),
            forward_only=forward_only,
        )
        total, tokens = sum_over_ranks([report["loss"] for report in reports], size=2)
        return total, tokens

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

    def _micro_batches(self, dataset: Any, first_sample: int) -> Iterator[dict[str, Any]]:
        """This data-parallel rank's micro-batches of the global batch that starts at `first_sample`."""
        from megatron.core.utils import get_batch_on_this_cp_rank

        size = self.batch.micro_batch_size
        for index in range(self.micro_batches):
            start = first_sample + (index * self.parallel.data_parallel_size + self.data_rank) * size
            samples = [dataset[i] for i in range(start, start + size)]
            yield place_documents(get_batch_on_this_cp_rank(collate(samples)), samples, self.backend)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples into `[batch, sequence_length]` tensors on this rank's device."""
    keys = ("tokens", "labels", "loss_mask", "position_ids")
    return {key: torch.stack([torch.as_tensor(s[key]) for s in samples]).to(device()) for key in keys}


def _forward_step(batches: Iterator[dict[str, Any]], model: Any) -> tuple[torch.Tensor, Any]:
    batch = next(batches)
    output = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        packed_seq_params=batch.get(PACKED),
    )
    return output, partial(_token_loss, batch["loss_mask"])


def _token_loss(
    mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Summed loss and token count. Megatron divides the gradients by the count of all ranks and micro-batches."""
    total, tokens = (losses.float() * mask).sum(), mask.sum()
    return total, tokens.int(), {"loss": torch.stack([total.detach(), tokens.detach()])}


def _call(method: weakref.WeakMethod[Callable[[Any], Any]], argument: Any) -> Any:
    """Call a weakly referenced method whose object still exists."""
    bound = method()
    assert bound is not None
    return bound(argument)


def sum_over_ranks(reports: Sequence[torch.Tensor], size: int) -> list[float]:
    """Sum vectors of `size` numbers over micro-batches, data- and context-parallel ranks and pipeline stages.

    Only the last pipeline stage passes reports. All ranks get the same sums, computed in fp64.
    """
    from megatron.core import parallel_state

    summed = (
        torch.stack(list(reports)).double().sum(0)
        if reports
        else torch.zeros(size, dtype=torch.float64, device=device())
    )
    dist.all_reduce(summed, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.all_reduce(summed, group=parallel_state.get_pipeline_model_parallel_group())
    values: list[float] = summed.tolist()
    return values
