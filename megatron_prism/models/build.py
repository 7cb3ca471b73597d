"""Builds this rank's Megatron-Core model from an `Architecture`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from megatron_prism.models import specs_te
from megatron_prism.models.architecture import BACKENDS, Architecture, check_recompute
from megatron_prism.models.layers.activation import squared_relu
from megatron_prism.models.layers.initialization import UNINITIALIZED, move_to_device
from megatron_prism.models.layers.multipliers import install_embedding_multiplier
from megatron_prism.models.layers.output_layer import install_output_layer
from megatron_prism.models.layers.recompute import install_recompute, install_selective
from megatron_prism.models.rope import inverse_frequencies
from megatron_prism.pipeline.config import one_of
from megatron_prism.platform.cpu_seam import on_meta
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import ParallelConfig, cuda_requests_on_cpu

# Megatron's settings. The te backend's norms are inside its linear layers, so selective recomputes whole MLPs there.
MEGATRON_RECOMPUTE: dict[str, dict[str, Any]] = {
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def softmax_scale(architecture: Architecture) -> float | None:
    """The factor of attention scores; None means Megatron's default, 1/sqrt(head_dim).

    YaRN multiplies cos and sin by a number. Every channel of a head is rotated here, so queries and keys are both
    multiplied by it, and their product by its square.
    """
    a = architecture
    scaling = a.rope_scaling if a.position_embedding == "rope" else None
    factor = scaling.attention_scaling if scaling else 1.0
    if factor == 1.0:
        return a.attention_multiplier
    plain = a.head_dim**-0.5 if a.attention_multiplier is None else a.attention_multiplier
    return plain * factor**2


def transformer_config(
    architecture: Architecture, parallel: ParallelConfig, dtype: torch.dtype, **settings: Any
) -> Any:
    """Megatron's config for an architecture under a parallel layout; `settings` replace single fields.

    Interleaved pipelines overlap their sends. Without that, Megatron-Core 0.16.1 silently computes wrong results at
    PP 2.
    """
    from megatron.core.transformer import TransformerConfig

    a = architecture
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    last = parallel.layers_in_last_stage
    if parallel.pipeline_model_parallel_size == 2 and parallel.layers_in_first_stage is not None:
        # It follows. With both, upstream divides by the number of stages between them (transformer_layer.py:137).
        last = None
    values: dict[str, Any] = {
        "num_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "ffn_hidden_size": a.ffn_hidden_size,
        "num_attention_heads": a.num_attention_heads,
        "num_query_groups": a.num_query_groups,
        "kv_channels": a.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": a.norm_epsilon,
        "add_bias_linear": False,
        "gated_linear_unit": a.activation == "swiglu",
        "activation_func": F.silu if a.activation == "swiglu" else squared_relu,
        "softmax_scale": softmax_scale(a),
        "window_size": None if a.sliding_window is None else (a.sliding_window - 1, 0),
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": a.initializer_range,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "num_layers_in_first_pipeline_stage": parallel.layers_in_first_stage,
        "num_layers_in_last_pipeline_stage": last,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "batch_p2p_comm": not interleaved,
        "overlap_p2p_comm": interleaved,
        "bf16": dtype is torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        # Whole matrices are initialised and then split, so they are the same in every tensor-parallel layout. (Upstream
        # draws Mamba's convolution, dt_bias and A_log for each rank.)
        "use_cpu_initialization": True,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }
    if a.is_hybrid:
        values |= {
            "is_hybrid_model": True,
            "mamba_num_heads": a.mamba_num_heads,
            "mamba_head_dim": a.mamba_head_dim,
            "mamba_state_dim": a.mamba_state_dim,
            "mamba_num_groups": a.mamba_num_groups,
        }
    return TransformerConfig(**(values | settings))


def build_model(
    architecture: Architecture,
    dtype: torch.dtype = torch.float32,
    parallel: ParallelConfig | None = None,
    *,
    vp_stage: int | None = None,
    backend: str = "auto",
    recompute: str = "none",
    initialize: bool = True,
    **settings: Any,
) -> Any:
    """This rank's model (one chunk of it under virtual pipelining), on this rank's device.

    Needs a running `platform.process_groups.session`.

    Args:
        backend: 'te' (Transformer Engine, mamba_ssm), 'torch', or 'auto': te if this machine supports it.
        recompute: 'selective' computes norms, activation functions and scans again in the backward pass (te: the
            MLPs); 'full' keeps only each layer's input in training, and no activation inside the layer.
        initialize: False leaves the weights undefined; only for a model whose weights are all loaded afterwards.
        settings: fields of Megatron's TransformerConfig that replace those made from the architecture.

    Raises:
        ParallelError: if the layout does not divide a size of the architecture.
        ConfigError: if the backend cannot be used here, or FP8 or recomputation is requested and would not be used.
    """
    from megatron.core import parallel_state

    parallel = parallel or ParallelConfig()
    architecture.check_parallel(parallel)
    backend = choose_backend(backend, architecture.is_hybrid)
    specs_te.require_fp8(settings.get("fp8"), backend)
    check_recompute(recompute, architecture, settings.get("fp8"))
    if (recompute == "full" and not architecture.is_hybrid) or (recompute == "selective" and backend == "te"):
        settings = MEGATRON_RECOMPUTE[recompute] | settings
    if not initialize:
        settings = UNINITIALIZED | settings
    config = transformer_config(architecture, parallel, dtype, **settings)
    shared: dict[str, Any] = {
        "vocab_size": architecture.padded_vocab_size(parallel.tensor_model_parallel_size),
        "max_sequence_length": architecture.max_position_embeddings,
        "pre_process": parallel_state.is_pipeline_first_stage(
            ignore_virtual=vp_stage is None, vp_stage=vp_stage
        ),
        "post_process": parallel_state.is_pipeline_last_stage(
            ignore_virtual=vp_stage is None, vp_stage=vp_stage
        ),
        "share_embeddings_and_output_weights": architecture.tie_word_embeddings,
        "position_embedding_type": architecture.position_embedding,
        "parallel_output": True,
    }
    with cuda_requests_on_cpu():
        model = (
            _hybrid(architecture, config, shared, backend)
            if architecture.is_hybrid
            else _dense(architecture, config, shared, backend=backend, vp_stage=vp_stage)
        )
    for module in model.modules():
        if hasattr(module, "d_inner_local_tp"):
            # Upstream builds the mixer's gated norm with 1e-5 for every config (mamba_mixer.py:357).
            module.norm.eps = architecture.norm_epsilon
    if architecture.position_embedding == "rope":
        model.rotary_pos_emb.inv_freq = inverse_frequencies(
            architecture.head_dim, architecture.rope_theta, architecture.rope_scaling
        )
    if recompute == "selective" and backend == "torch":
        install_selective(model.decoder.layers)
    if recompute == "full" and architecture.is_hybrid:
        install_recompute(model.decoder.layers)
    model.recompute = recompute
    # `vocab_size` also counts rows that tensor parallelism adds.
    model.unpadded_vocab_size = architecture.vocab_size
    if shared["pre_process"]:
        install_embedding_multiplier(model.embedding, architecture.embedding_multiplier)
    if shared["post_process"]:
        install_output_layer(model, architecture.logits_scaling)
    move_to_device(model, device())
    return model


def build_on_meta(architecture: Architecture) -> Any:
    """The whole model with shapes only, without memory for its weights; it cannot compute. Needs a running session."""
    with on_meta():
        return build_model(architecture, backend="torch", initialize=False)


def choose_backend(wanted: str, hybrid: bool) -> str:
    """'te' or 'torch': the requested backend, or with 'auto' the first that this machine can run."""
    one_of(wanted, BACKENDS, "backend")
    if wanted != "auto":
        return wanted
    return "torch" if specs_te.missing(hybrid) else "te"


def _dense(
    architecture: Architecture, config: Any, shared: dict[str, Any], *, backend: str, vp_stage: int | None
) -> Any:
    from megatron_prism.models import specs_torch
    from megatron_prism.models.language_models import DenseModel

    specs = specs_te if backend == "te" else specs_torch
    spec = specs.dense_block_spec(config, architecture.residual_multiplier, vp_stage)
    return DenseModel(config=config, transformer_layer_spec=spec, vp_stage=vp_stage, **shared)


def _hybrid(architecture: Architecture, config: Any, shared: dict[str, Any], backend: str) -> Any:
    from megatron_prism.models import specs_torch
    from megatron_prism.models.language_models import HybridModel

    specs = specs_te if backend == "te" else specs_torch
    spec = specs.hybrid_stack_spec(architecture.residual_multiplier)
    return HybridModel(
        config=config, mamba_stack_spec=spec, hybrid_override_pattern=architecture.hybrid_pattern, **shared
    )


def local_parameter_count(model: Any) -> int:
    """Parameters on this rank; a tied output layer under pipelining is counted where it is stored."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
