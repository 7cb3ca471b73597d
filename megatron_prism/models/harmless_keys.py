"""Config keys of transformers that cannot change a logit of the families here, as data.

Keys in `HARMLESS` may have any value: they control output, caching or sampling, or name the origin of a file. They
are the keys of transformers' PretrainedConfig and GenerationConfig (4.57 and 5.23; both write them into config.json),
and keys of training programs. Keys in `HARMLESS_WHEN` may have only the value given there; any other would change the
model.
"""

from __future__ import annotations

from typing import Any

_CONFIG = (
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map"),
    *(
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "_auto_class",
        "_from_auto",
        "tokenizer_class",
        "prefix",
    ),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"),
    *("mask_token_id", "decoder_start_token_id"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits"),
    *("_output_attentions", "output_logits", "num_logits_to_keep", "logits_to_keep"),
    *("torchscript", "chunk_size_feed_forward", "pretraining_tp", "is_decoder", "use_bfloat16"),
    *("tf_legacy_loss", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    *("finetuning_task", "attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
    *("_attn_implementation_autoset", "_flash_attn_2_enabled", "_use_sdpa", "experts_implementation"),
    *("_experts_implementation", "_experts_implementation_internal", "_post_init_done"),
    *("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan"),
    *("keys_to_ignore_at_inference", "ignore_keys_at_rope_validation", "tie_last_hidden_states"),
    *("gradient_checkpointing", "neftune_noise_alpha"),
)
_GENERATION = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings"),
    *("do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "repetition_penalty", "encoder_repetition_penalty", "length_penalty", "penalty_alpha"),
    *("diversity_penalty", "exponential_decay_length_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "num_beams", "num_beam_groups", "num_return_sequences"),
    *("early_stopping", "bad_words_ids", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "sequence_bias", "constraints", "renormalize_logits"),
    *("remove_invalid_values", "output_scores", "return_dict_in_generate", "return_legacy_cache"),
    *("guidance_scale", "watermarking_config", "token_healing", "low_memory", "dola_layers"),
    *("cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config"),
    *("disable_compile", "continuous_batching_config", "is_assistant", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit"),
    *("assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind", "speculation_type"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp", "_from_model_config"),
)
# Written by training and serving programs: their name, and the length of their inputs.
_PROGRAMS = (
    *("unsloth_version", "unsloth_fixed", "unsloth_tiled_mlp", "transformers.js_config"),
    *("model_max_length", "max_sequence_length", "use_flash_attn", "use_flash_attention_2"),
)
HARMLESS = frozenset((*_CONFIG, *_GENERATION, *_PROGRAMS))

# The value with which a key has no effect. An absent key or null always means this value.
HARMLESS_WHEN: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "per_layer_config": {},
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "use_sliding_window": False,
    "rope_interleaved": False,
    "is_llama_config": True,
}
