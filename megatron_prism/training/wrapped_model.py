"""This rank's model chunks, wrapped in Megatron's DDP, and the functions that its schedules call on them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.layers.output_layer import install_vocabulary_limit
from megatron_prism.platform.process_groups import ParallelConfig, cuda_requests_on_cpu
from megatron_prism.training.parameter_gather import wait_for_whole_layers
from megatron_prism.training.trainable import freeze


def build_chunks(
    architecture: Architecture,
    parallel: ParallelConfig,
    dtype: torch.dtype,
    *,
    trainable: str,
    ddp_fields: Mapping[str, Any],
    **settings: Any,
) -> list[Any]:
    """The chunks of this rank, one, or one for each virtual stage of an interleaved pipeline.

    Args:
        trainable: as in TrainConfig.
        ddp_fields: of Megatron's DistributedDataParallelConfig.
        settings: what `build_model` takes.
    """
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    virtual = parallel.virtual_pipeline_model_parallel_size
    chunks: list[Any] = []
    for stage in range(virtual or 1):
        model = _chunk(architecture, parallel, dtype, stage if virtual else None, **settings)
        freeze(model, trainable)
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=parallel.use_distributed_optimizer, **ddp_fields
        )
        chunks.append(DistributedDataParallel(model.config, ddp, model, disable_bucketing=stage > 0))
        if ddp.overlap_param_gather:
            wait_for_whole_layers(chunks[-1])
    return chunks


def _chunk(
    architecture: Architecture,
    parallel: ParallelConfig,
    dtype: torch.dtype,
    vp_stage: int | None,
    **settings: Any,
) -> Any:
    from megatron.core.transformer.enums import ModelType

    model = build_model(
        architecture, dtype, parallel, vp_stage=vp_stage, calculate_per_token_loss=True, **settings
    )
    model.model_type = ModelType.encoder_or_decoder
    if dtype is torch.bfloat16:
        # Mamba's A_log and D are converted too, as upstream does; the optimizer's main weights stay fp32.
        model.bfloat16()
    if architecture.tie_word_embeddings and parallel.pipeline_model_parallel_size > 1:
        with cuda_requests_on_cpu():
            model.setup_embeddings_and_output_layer()
    if model.post_process and model.vocab_size > architecture.vocab_size:
        # Without this, the rows that fill up the last tensor-parallel rank would make the loss depend on the layout.
        install_vocabulary_limit(model.output_layer, architecture.vocab_size)
    return model


def connect(chunks: list[Any], optimizer: Any) -> None:
    """Tell Megatron's schedules how to reduce the gradients of these chunks and how the optimizer scales the loss.

    The references are weak: if a config held the optimizer, the model and its process groups would never be freed.
    """
    from megatron.core.distributed import finalize_model_grads

    scale_loss = weakref.WeakMethod(optimizer.scale_loss)
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = finalize_model_grads
        chunk.config.grad_scale_func = partial(_call, scale_loss)
    if chunks[0].ddp_config.overlap_grad_reduce:
        # Gradients are reduced in the backward pass of the last micro-batch only.
        hold = [weakref.WeakMethod(chunk.no_sync) for chunk in chunks]
        for chunk in chunks:
            functions = [partial(_call_without_argument, each) for each in hold]
            chunk.config.no_sync_func = functions if len(functions) > 1 else functions[0]


def _call(method: weakref.WeakMethod[Callable[[Any], Any]], argument: Any) -> Any:
    """Call a weakly referenced method whose object still exists."""
    bound = method()
    assert bound is not None
    return bound(argument)


def _call_without_argument(method: weakref.WeakMethod[Callable[[], Any]]) -> Any:
    """Call a weakly referenced method whose object still exists."""
    bound = method()
    assert bound is not None
    return bound()
