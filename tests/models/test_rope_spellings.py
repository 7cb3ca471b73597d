"""Spellings of rotary settings against transformers: the same frequencies of the same config.json, or a refusal."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_prism.errors import ConfigError
from megatron_prism.models.families import architecture_from_config
from megatron_prism.models.rope import inverse_frequencies

BASE = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WHOLE = {**LLAMA3, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def old(block, theta=5e5, **top_level):
    return {"rope_theta": theta, "rope_scaling": block, **top_level}


def without(block, *keys):
    return {key: value for key, value in block.items() if key not in keys}


# The rotary keys of config.json, and a part of the remark if a value is ignored.
READ = {
    "nothing": ({}, None),
    "theta as an integer": ({"rope_theta": 500000}, None),
    "no scaling": (old(None), None),
    "an empty scaling": (old({}), None),
    "the default by its old name": (old({"type": "default"}), None),
    "the default with a number": (old({"rope_type": "default", "factor": 4.0}), "transformers: 'factor'=4.0"),
    "the default with a null": (old({"rope_type": "default", "factor": None}), None),
    "theta inside the old block": (old({**WHOLE, "rope_theta": 500.0}, None), None),
    "another theta next to the old block": (old({**WHOLE, "rope_theta": 500.0}), "rope_theta=500000 is ignored"),
    "another theta next to the new block": (
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "top-level rope_theta=10000 is ignored",
    ),
    "theta next to the new block": ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, None),
    "a new block without a type": ({"rope_parameters": {"rope_theta": 5e5}}, None),
    "both blocks, the old without theta": (old(WHOLE, rope_parameters={**WHOLE, "rope_theta": 5e5}), None),
    "both blocks, the type spelled twice": (
        old({**without(WHOLE, "rope_type"), "type": "llama3"}, rope_parameters={**WHOLE, "rope_theta": 5e5}), None,
    ),
    "the type twice": (old({**WHOLE, "type": "llama3"}), None),
    "llama3 in integers": (old({**WHOLE, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}), None),
    "llama3 without the original length": (old(LLAMA3), "max_position_embeddings=128 is used"),
    "llama3 with the original length at the top level": (old(LLAMA3, original_max_position_embeddings=32), None),
    "llama3 with it in the block and at the top level": (old(WHOLE, original_max_position_embeddings=16), None),
    "linear by its old name": (old({"type": "linear", "factor": 2}), None),
    "linear below one": (old({"type": "linear", "factor": 0.5}), None),
    "linear with an original length": (
        old({**LINEAR, "original_max_position_embeddings": 64}),
        "ignored, as in transformers: 'original_max_position_embeddings'=64",
    ),
    "dynamic by its old name": (old({"type": "dynamic", "factor": 2.0}), None),
    "dynamic with an original length": (
        old({"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}),
        "'original_max_position_embeddings'=64 (not used by rope_type='dynamic')",
    ),
    "yarn": (old(YARN), None),
    "yarn with an unknown flag": (old({**YARN, "finetuned": True}), "transformers: 'finetuned'=True"),
    "yarn with another type's number": (old({**YARN, "low_freq_factor": 1.0}), "'low_freq_factor'"),
    "yarn without the original length": (
        old(without(YARN, "original_max_position_embeddings")), "max_position_embeddings=128 is used",
    ),
    "yarn without a factor": (old({**YARN, "factor": None}), None),
    "yarn below one": (old({**YARN, "factor": 0.5}), None),
    "yarn with nulls": (old({**YARN, "beta_fast": None, "beta_slow": None, "mscale": None}), None),
    "yarn with zeros": (old({**YARN, "beta_fast": 0, "beta_slow": 0}), None),
    "yarn with one mscale of zero": (old({**YARN, "mscale": 1.0, "mscale_all_dim": 0.0}), None),
    "yarn with its betas exchanged": (old({**YARN, "beta_fast": 1, "beta_slow": 32}), None),
    "yarn with equal betas": (old({**YARN, "beta_fast": 4, "beta_slow": 4}), None),
    "whole heads, at the top level": (old(None, partial_rotary_factor=1.0), None),
    "whole heads, in the block": ({"rope_parameters": {"partial_rotary_factor": 1, "rope_theta": 1e4}}, None),
}  # fmt: skip


@pytest.fixture
def transformers_config(tmp_path):
    def read(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        logging.getLogger("transformers.modeling_rope_utils").setLevel(logging.ERROR)
        return AutoConfig.from_pretrained(tmp_path)

    return read


@pytest.mark.parametrize("name", READ)
def test_a_spelling_is_read_as_transformers_reads_it(name, transformers_config):
    keys, remarked = READ[name]
    keys = {key: value for key, value in keys.items() if (key, value) != ("rope_theta", None)}
    theirs = LlamaRotaryEmbedding(transformers_config(BASE | keys))
    remarks: list[str] = []
    a = architecture_from_config(BASE | keys, remarks)
    ours = inverse_frequencies(a.head_dim, a.rope_theta, a.rope_scaling)
    torch.testing.assert_close(ours, theirs.inv_freq, rtol=1e-6, atol=0)
    scaling = a.rope_scaling.attention_scaling if a.rope_scaling else 1.0
    assert scaling == pytest.approx(theirs.attention_scaling, rel=1e-12)
    assert [remarked in each for each in remarks] == ([] if remarked is None else [True]), remarks


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_theta": "500000"}, "rope_theta='500000': must be a number greater than 1"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rope_theta": [1e4]}, r"rope_theta=\[10000.0\]"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear': must be an object"),
        ({"rope_scaling": []}, r"rope_scaling=\[\]: must be an object"),
        ({"rope_parameters": 3}, "rope_parameters=3: must be an object"),
        (old(WHOLE, rope_parameters={**WHOLE, "rope_theta": 1e4}), r"rope_parameters .* rope_scaling .* differ"),
        (old(LINEAR, rope_parameters={"rope_type": "default", "rope_theta": 5e5}), r"rope_parameters \(default, "),
        (old(WHOLE, original_max_position_embeddings=64), "is 16 in rope_scaling, but 64 at the top level"),
        (old(None, partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not supported"),
        (old({"type": "longrope", "factor": 2.0}), "rope_type='longrope' is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "'full_attention'="),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused_in_one_line(keys, named):
    with pytest.raises(ConfigError, match=named) as caught:
        architecture_from_config(BASE | keys)
    assert "\n" not in str(caught.value)
