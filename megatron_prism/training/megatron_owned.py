"""The fields of Megatron-Core's configs that the `megatron` block may not set, and what to do in place of each.

OWNED fields are set from another key of the config, CONSTANT ones always have the value that this project's models and
steps need; `tests/training/test_megatron_block.py` compares both with what the code really passes. REFUSED fields
(names or patterns) are set by nothing here, because they would have no effect, or need what this project does not have.
"""

from __future__ import annotations

_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
_MAMBA = ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups")
_LAYOUT = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_STATE = ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")

# Field -> the key that sets it.
OWNED: dict[str, dict[str, str]] = {
    "transformer": {
        **{name: f"architecture.{name}" for name in (*_SIZES, *_MAMBA)},
        "kv_channels": "architecture.head_dim",
        "layernorm_epsilon": "architecture.norm_epsilon",
        "gated_linear_unit": "architecture.activation",
        "activation_func": "architecture.activation",
        "softmax_scale": "architecture.attention_multiplier",
        "window_size": "architecture.sliding_window",
        "init_method_std": "architecture.initializer_range",
        "is_hybrid_model": "architecture.hybrid_pattern",
        **{name: f"parallel.{name}" for name in (*_LAYOUT, "sequence_parallel")},
        "num_layers_in_first_pipeline_stage": "parallel.layers_in_first_stage",
        "num_layers_in_last_pipeline_stage": "parallel.layers_in_last_stage",
        "virtual_pipeline_model_parallel_size": "parallel.virtual_pipeline_model_parallel_size",
        **{name: "dtype" for name in ("bf16", "params_dtype", "pipeline_dtype")},
        **{
            name: "recompute"
            for name in (
                "recompute_granularity",
                "recompute_method",
                "recompute_num_layers",
                "recompute_modules",
            )
        },
        "gradient_accumulation_fusion": "kernels.gradient_accumulation_fusion",
        "bias_activation_fusion": "kernels.fused_swiglu",
        "apply_rope_fusion": "kernels.fused_rope",
        "attention_backend": "kernels.attention_backend",
        "cp_comm_type": "kernels.cp_comm_type",
        "fp8": "fp8",
        "fp8_recipe": "precision.fp8_recipe",
        "fp8_param": "precision.fp8_param_gather",
        "first_last_layers_bf16": "precision.first_last_layers_bf16",
        "num_layers_at_start_in_bf16": "precision.layers_at_start_in_bf16",
        "num_layers_at_end_in_bf16": "precision.layers_at_end_in_bf16",
    },
    "ddp": {
        "use_distributed_optimizer": "parallel.use_distributed_optimizer",
        "overlap_grad_reduce": "kernels.overlap_grad_reduce",
        "overlap_param_gather": "kernels.overlap_param_gather",
        "bucket_size": "kernels.bucket_size",
        "grad_reduce_in_fp32": "precision.grad_reduce_in_fp32",
        "fp8_param_gather": "precision.fp8_param_gather",
    },
    "optimizer": {
        "lr": "schedule.lr",
        "weight_decay": "optimizer.weight_decay",
        "adam_beta1": "optimizer.beta1",
        "adam_beta2": "optimizer.beta2",
        "adam_eps": "optimizer.eps",
        "clip_grad": "optimizer.clip_grad",
        **{name: "dtype" for name in ("bf16", "params_dtype")},
        "use_distributed_optimizer": "parallel.use_distributed_optimizer",
        "overlap_param_gather": "kernels.overlap_param_gather",
        "fp8_recipe": "precision.fp8_recipe",
        "use_precision_aware_optimizer": "precision.precision_aware_optimizer",
        "optimizer_cpu_offload": "precision.optimizer_offload",
        "optimizer_offload_fraction": "precision.optimizer_offload",
        **{name: f"precision.{name}" for name in _STATE},
    },
}

_UNUSED = "the layers of this project do not use it"
# Field -> why its value is fixed.
CONSTANT: dict[str, dict[str, str]] = {
    "transformer": {
        "normalization": "all families have RMSNorm",
        "add_bias_linear": "no family has biases",
        "calculate_per_token_loss": "the loss is a mean over tokens, whatever the layout",
        "use_cpu_initialization": "fresh weights are drawn on the host, so that they do not depend on the layout",
        "batch_p2p_comm": "it follows from parallel.virtual_pipeline_model_parallel_size",
        "overlap_p2p_comm": "it follows from parallel.virtual_pipeline_model_parallel_size",
        **{name: _UNUSED for name in ("masked_softmax_fusion", "bias_dropout_fusion", "persist_layer_norm")},
        "init_method": "weights that are loaded are not drawn",
        "output_layer_init_method": "weights that are loaded are not drawn",
        "embedding_init_method": "weights that are loaded are not drawn",
    },
    "ddp": {},
    "optimizer": {
        "optimizer": "only Adam's state can be resumed under another layout",
        "store_param_remainders": "a checkpoint of remainders could be read only under the layout that wrote it",
    },
}

# Constants that the block may replace: no dropout, as in the paper.
DEFAULTS = {
    "transformer": {"hidden_dropout", "attention_dropout"},
    "ddp": set[str](),
    "optimizer": set[str](),
}

_EXPERTS = "the models of this project have no experts"
_SHAPE = "it changes the model itself, and no family's folder could hold the result"
_GROUPS = "it needs process groups that this project does not create"
_SPLIT = "use parallel.layers_in_first_stage and parallel.layers_in_last_stage, or parallel.split=balanced"
_SAMPLING = "sampling does not use Megatron's inference code"
_LOSS = "the loss is computed a few hundred tokens at a time by this project's output layer"
_BUFFERS = "its communication buffers are not created here"
_LAYERS = "it needs layers that this project does not build"
_FP16 = "dtype=fp16 is not offered; use dtype=bf16"
_FSDP = "Megatron's FSDP is not used here"
_TIMERS = "no timers are passed; every step's line in metrics.jsonl has its parts"
_MUON = "the optimizer is always Adam"
_SCHEDULE = "use the keys of `schedule`, which set the learning rate before every step"
_GUARD = "use the keys of `guard`, which leave such a step out"
_NO_EFFECT = "it would have no effect here"

# Name or pattern of fields -> why they are refused.
REFUSED: dict[str, dict[str, str]] = {
    "transformer": {
        **dict.fromkeys(("moe_*", "num_moe_experts", "expert_*", "overlap_moe_*", "ep_overlap_*"), _EXPERTS),
        **dict.fromkeys(("use_fused_weighted_squared_relu", "delay_wgrad_compute"), _EXPERTS),
        **dict.fromkeys(("qk_l*", "add_qkv_bias", "attention_output_gate", "multi_latent_attention"), _SHAPE),
        **dict.fromkeys(("experimental_attention_variant", "dsa_*", "linear_*", "mtp_*"), _SHAPE),
        **dict.fromkeys(("softmax_type", "rotary_interleaved", "mrope_section", "no_rope_freq"), _SHAPE),
        **dict.fromkeys(("window_attn_skip_freq", "layernorm_zero_centered_gamma"), _SHAPE),
        **dict.fromkeys(("glu_linear_offset", "activation_func_clamp_value"), _SHAPE),
        **dict.fromkeys(("apply_residual_connection_post_layernorm", "apply_query_key_*"), _SHAPE),
        **dict.fromkeys(("heterogeneous_*", "hetereogenous_*", "fp32_residual_connection"), _SHAPE),
        **dict.fromkeys(("hierarchical_context_*", "hybrid_context_parallel", "max_seqlen_per_*"), _GROUPS),
        "pipeline_model_parallel_comm_backend": _GROUPS,
        **dict.fromkeys(("account_for_*", "pipeline_model_parallel_layout"), _SPLIT),
        **dict.fromkeys(("flash_decode", "inference_*", "use_inference_*", "symmetric_ar_type"), _SAMPLING),
        **dict.fromkeys(("batch_invariant_mode", "mlp_chunks_for_prefill"), _SAMPLING),
        **dict.fromkeys(("cross_entropy_*", "defer_embedding_wgrad_compute", "wgrad_deferral_limit"), _LOSS),
        "tp_comm_*": _BUFFERS,
        **dict.fromkeys(("use_kitchen*", "kitchen_*", "fp4*", "qk_clip*", "log_max_*"), _LAYERS),
        "fp8_quantizer_factory": "precision.fp8_recipe has no recipe that would use it",
        "transformer_impl": "use backend",
        "fp16": _FP16,
        "init_model_with_meta_device": _FSDP,
        "barrier_with_L1_time": _TIMERS,
        "perform_initialization": "upstream would not mark the weights as tensor-parallel",
        "num_microbatches_with_partial_activation_checkpoints": "use recompute",
        **dict.fromkeys(
            ("attention_softmax_in_fp32", "memory_efficient_layer_norm", "test_mode"), _NO_EFFECT
        ),
        "async_tensor_model_parallel_allreduce": _NO_EFFECT,
        "external_cuda_graph": "only graphs of Megatron itself are captured here; use cuda_graph_impl=local",
    },
    "ddp": {
        **dict.fromkeys(("use_megatron_fsdp", "use_custom_fsdp", "*_sharding_strategy", "fsdp_*"), _FSDP),
        **dict.fromkeys(("gradient_reduce_div_fusion", "suggested_communication_unit_size"), _FSDP),
        **dict.fromkeys(("preserve_fp32_weights", "keep_fp8_transpose_cache"), _FSDP),
        "num_distributed_optimizer_instances": _GROUPS,
        "check_for_*": _GUARD,
        "average_in_collective": "Megatron does not average when the loss is a mean over tokens",
        "reuse_grad_buf_for_mxfp8_param_ag": "a step that the guard leaves out would lose the weights",
        "delay_wgrad_compute": _EXPERTS,
    },
    "optimizer": {
        **dict.fromkeys(("min_lr", "decoupled_*lr"), _SCHEDULE),
        **dict.fromkeys(("sgd_*", "muon_*"), _MUON),
        **dict.fromkeys(("fp16", "initial_loss_scale", "min_loss_scale", "loss_scale_window"), _FP16),
        "hysteresis": _FP16,
        "apply_wd_to_qk_layernorm": _SHAPE,
        "reuse_grad_buf_for_mxfp8_param_ag": "a step that the guard leaves out would lose the weights",
        "overlap_param_gather_with_optimizer_step": "a step may be left out when its gradient norm is known",
        "barrier_with_L1_time": _TIMERS,
        "log_num_zeros_in_grad": _NO_EFFECT,
    },
}
