"""The written config.json has every change in every spelling, and no contradiction."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import CONFIGS, LLAMA3, YARN

from megatron_prism.conversion.config_json import updated_config, write_config
from megatron_prism.models.families import architecture_from_config, hf_config
from megatron_prism.pipeline.artifact import write_json

LLAMA = {key: value for key, value in CONFIGS["llama"].items() if key != "rope_parameters"}
NUMBERS = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
IMPLIED = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
SPELLINGS = {
    "two keys": {"rope_theta": 500.0, "rope_scaling": NUMBERS},
    "theta inside": {"rope_scaling": LLAMA3},
    "the new block": {"rope_parameters": LLAMA3},
    "both": {"rope_theta": 500.0, "rope_scaling": LLAMA3, "rope_parameters": LLAMA3},
    "beside": {"rope_scaling": IMPLIED, "original_max_position_embeddings": 32, "partial_rotary_factor": 1.0},
    "nothing": {},
}


def without_theta(block):
    return {key: value for key, value in block.items() if key != "rope_theta"}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_changed_rotary_settings_are_written_in_every_spelling(spelling):
    config = LLAMA | SPELLINGS[spelling]
    architecture = architecture_from_config(config)
    assert updated_config(config, architecture) == config
    architecture.rope_theta = 9000.0
    written = updated_config(config, architecture)
    remarks: list[str] = []
    assert architecture_from_config(written, remarks) == architecture
    assert not remarks
    # As transformers 4 reads it, and as transformers 5 does from its own block alone.
    for dropped in (("rope_parameters",), ("rope_theta", "rope_scaling")):
        part = {key: value for key, value in written.items() if key not in dropped}
        assert architecture_from_config(part) == architecture
    assert not {"original_max_position_embeddings", "partial_rotary_factor"} & written.keys()
    assert without_theta(written["rope_parameters"]) == (written["rope_scaling"] or {"rope_type": "default"})


def test_an_omitted_original_length_does_not_change_with_a_longer_context():
    config = LLAMA | {"rope_scaling": IMPLIED}
    architecture = architecture_from_config(config)
    architecture.max_position_embeddings *= 4
    written = updated_config(config, architecture)
    assert written["rope_scaling"]["original_max_position_embeddings"] == LLAMA["max_position_embeddings"]
    assert architecture_from_config(written) == architecture


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32", "torch_dtype": "float32"}, "bfloat16"),
        ({"dtype": "float32"}, "bfloat16"),
        ({"torch_dtype": "float32"}, "bfloat16"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, None),
        ({"dtype": None}, None),
    ],
    ids=str,
)
def test_both_names_of_the_dtype_are_written_where_it_changed(before, after, tmp_path):
    write_json(tmp_path / "config.json", LLAMA | before)
    content = (tmp_path / "config.json").read_bytes()
    write_config(tmp_path, architecture_from_config(LLAMA), torch.bfloat16, {})
    if after is None:
        assert (tmp_path / "config.json").read_bytes() == content
    else:
        written = json.loads((tmp_path / "config.json").read_text())
        assert (written["dtype"], written["torch_dtype"]) == (after, after)


def test_transformers_4_reads_a_config_made_here(tmp_path):
    for name, config in CONFIGS.items():
        made = hf_config(architecture_from_config(config))
        if config["model_type"] == "granitemoehybrid":
            assert set(made["layer_types"]) <= {"mamba", "attention"}, name
        if config["model_type"] != "nemotron_h":
            assert made["rope_theta"] == made["rope_parameters"]["rope_theta"], name
    write_config(tmp_path, architecture_from_config(LLAMA), torch.float16, {"eos_token_id": 3})
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"], written["eos_token_id"]) == ("float16", "float16", 3)
