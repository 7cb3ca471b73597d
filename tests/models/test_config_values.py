"""config.json: values of the wrong type are refused in one line, harmless keys of transformers are accepted."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tiny_models import CONFIGS
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import FAMILIES, architecture_from_config
from megatron_prism.models.harmless_keys import HARMLESS, HARMLESS_WHEN

TINY = {
    "llama": CONFIGS["llama"],
    "mistral": CONFIGS["mistral-window"],
    "granite": CONFIGS["granite"],
    "granitemoehybrid": CONFIGS["granite-h-rope-groups"],
    "nemotron_h": CONFIGS["nemotron-h"],
}
WRONG = ("8", [8], {"a": 8}, 8.5, True, float("nan"), float("inf"), 10**400, -8, 0)
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "head_dim",
)
# Of some families only.
MORE_SIZES = {
    "mistral": ("sliding_window", "intermediate_size", "num_hidden_layers"),
    "granitemoehybrid": (
        "shared_intermediate_size",
        "mamba_n_heads",
        "mamba_d_state",
        "mamba_n_groups",
        "mamba_d_head",
    ),
    "nemotron_h": ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "num_hidden_layers"),
}


@pytest.mark.parametrize("family", TINY)
def test_a_size_of_the_wrong_type_is_one_line(family):
    for key in (*SIZES, *MORE_SIZES.get(family, ("intermediate_size", "num_hidden_layers"))):
        for value in WRONG:
            with pytest.raises(ConfigError, match=f"config.json: {key}=.*a whole number from 1") as caught:
                architecture_from_config(TINY[family] | {key: value})
            assert len(str(caught.value)) < 250


@pytest.mark.parametrize("family", TINY)
def test_other_values_of_the_wrong_type_are_one_line(family):
    epsilon = "layer_norm_epsilon" if family == "nemotron_h" else "rms_norm_eps"
    for key, values in {
        epsilon: ("1e-5", [], None, float("nan"), -1.0, 10**400),
        "initializer_range": ("x", {}, float("inf")),
        "tie_word_embeddings": ("true", 1, None, []),
        "hidden_act" if family != "nemotron_h" else "mlp_hidden_act": (3, ["silu"], {}),
        "attention_bias": ("false", [], 2),
        "model_type": (None, 3, ["llama"]),
        "vocab_size": (None,),
    }.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"config.json: {key}"):
                architecture_from_config(TINY[family] | {key: value})


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("granite", "logits_scaling", 0),
        ("granite", "embedding_multiplier", "12"),
        ("granitemoehybrid", "residual_multiplier", None),
        ("granitemoehybrid", "layer_types", "mamba"),
        ("granitemoehybrid", "layer_types", ["mamba", ["attention"], "mamba"]),
        ("granitemoehybrid", "layer_types", 3),
        ("granitemoehybrid", "position_embedding_type", ["rope"]),
        ("granitemoehybrid", "time_step_limit", 3),
        ("granitemoehybrid", "time_step_limit", [0.0, {"x": 1}]),
        ("nemotron_h", "hybrid_override_pattern", ["M", "-"]),
        ("nemotron_h", "layers_block_type", "M-M"),
        ("nemotron_h", "time_step_limit", ["0", None]),
        ("llama", "num_hidden_layers", 10**9),
    ],
)  # fmt: skip
def test_a_value_of_one_family_is_one_line(family, key, value):
    with pytest.raises(ConfigError, match=f"config.json: {key}"):
        architecture_from_config(TINY[family] | {key: value})


@pytest.mark.parametrize("family", TINY)
def test_null_groups_are_as_many_as_heads(family):
    config = TINY[family] | {"num_key_value_heads": None}
    assert architecture_from_config(config).num_query_groups == config["num_attention_heads"]
    # transformers 4 reads it like this for every family; 5 refuses it for these two.
    if family not in ("mistral", "nemotron_h"):
        assert AutoConfig.for_model(**config).num_key_value_heads == config["num_attention_heads"]


def test_use_sliding_window_must_not_contradict_the_window():
    with pytest.raises(ConfigError, match="use_sliding_window=False contradicts sliding_window=7"):
        architecture_from_config(TINY["mistral"] | {"use_sliding_window": False})
    none = TINY["mistral"] | {"use_sliding_window": False, "sliding_window": None}
    assert architecture_from_config(none).sliding_window is None


def test_two_lists_of_layers_must_agree():
    twice = ["mamba", "mlp", "mamba", "attention", "mlp", "mamba"]
    assert architecture_from_config(TINY["nemotron_h"] | {"layers_block_type": twice})
    with pytest.raises(ConfigError, match="the lists of layers differ"):
        architecture_from_config(TINY["nemotron_h"] | {"layers_block_type": twice[::-1]})


@pytest.mark.parametrize("family", TINY)
def test_every_key_of_transformers_base_classes_is_known(family):
    config = AutoConfig.for_model(**TINY[family]).to_dict() | GenerationConfig().to_dict()
    config |= {key: value for key, value in vars(PretrainedConfig()).items() if key not in config}
    # GenerationConfig has no value for most of its keys; any value must be accepted.
    config |= {key: 1 for key in GenerationConfig().to_dict() if config[key] is None}
    config |= TINY[family]
    assert architecture_from_config(config) == architecture_from_config(TINY[family])


def test_transformers_4_writes_these_too():
    old = {
        "add_cross_attention": False, "cross_attention_hidden_size": None, "diversity_penalty": 0.0,
        "early_stopping": False, "num_beam_groups": 1, "pruned_heads": {}, "tf_legacy_loss": False,
        "tie_encoder_decoder": False, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
    }  # fmt: skip
    assert architecture_from_config(CONFIGS["llama"] | old) == architecture_from_config(CONFIGS["llama"])


def test_a_key_that_is_harmless_with_one_value_is_refused_with_another():
    for key, value in HARMLESS_WHEN.items():
        assert architecture_from_config(CONFIGS["llama"] | {key: value})
        other = {"0": {}} if isinstance(value, dict) else 0.5 if isinstance(value, float) else not value
        with pytest.raises(ConfigError, match=f"key '{key}'="):
            architecture_from_config(CONFIGS["llama"] | {key: other})
    assert not HARMLESS & HARMLESS_WHEN.keys()


def test_all_unknown_keys_are_named_at_once():
    with pytest.raises(
        ConfigError, match=r"keys 'a_norm'=True, 'softcap'=30.0 are not known for llama .*remove those"
    ):
        architecture_from_config(CONFIGS["llama"] | {"softcap": 30.0, "a_norm": True, "absent": None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_query_groups", 0), ("hidden_size", "32"), ("head_dim", None), ("rope_theta", "1e4"), ("head_dim", 7),
        ("rope_scaling", "linear"), ("rope_scaling", {"rope_type": "linear", "factor": "2"}), ("vocab_size", True),
    ],
)  # fmt: skip
def test_an_architecture_file_with_such_a_value_is_one_line(key, value, tmp_path):
    path = tmp_path / "architecture.json"
    made = dataclasses.asdict(architecture_from_config(CONFIGS["llama"]))
    path.write_text(json.dumps(made | {key: value}))
    with pytest.raises(CheckpointError, match=r"architecture\.json: "):
        Architecture.load(path)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="a JSON object is needed, found list"):
        Architecture.load(path)


def test_the_tiny_configs_are_of_every_family():
    assert TINY.keys() == FAMILIES.keys()
