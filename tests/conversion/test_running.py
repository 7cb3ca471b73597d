"""Export of a model that was made in this process and never was a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny_models import CONFIGS, FAMILIES, VOCABULARY, make_tokenizer, randomize
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_prism.conversion.export_hf import export_running
from megatron_prism.conversion.logits import compare, folder_outputs, megatron_outputs
from megatron_prism.errors import ArtifactError, CheckpointError, ConfigError
from megatron_prism.models.build import build_model
from megatron_prism.models.families import architecture_from_config, from_hf, hf_config, to_hf
from megatron_prism.platform.process_groups import session

TOKENS = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


def architecture_of(name):
    return architecture_from_config(CONFIGS[name])


def random_model(architecture):
    model = build_model(architecture)
    randomize(model, torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_it_and_computes_the_same(name, tokenizer_folder, tmp_path):
    architecture = architecture_of(name)
    model = random_model(architecture)
    export_running([model], architecture, tmp_path, tokenizer=tokenizer_folder)
    ours = megatron_outputs(model, architecture, TOKENS)
    compared = compare(ours, folder_outputs(tmp_path, TOKENS, torch.float32), 1e-4)
    assert compared.max_abs_logit > 0.5
    assert compared.max_abs_difference <= compared.allowed(1e-4)
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    out = loaded.generate(torch.tensor([tokenizer("ABC")["input_ids"]]), max_new_tokens=3, min_new_tokens=3)
    assert out.shape == (1, 6)


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_weights_there_and_back_are_bit_equal(name):
    architecture = architecture_of(name)
    whole = random_model(architecture).state_dict()
    state = {key: value for key, value in whole.items() if not key.endswith("_extra_state")}
    back = from_hf(architecture, to_hf(architecture, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_vocabulary_padding_is_left_out():
    architecture = architecture_of("granite")
    state = random_model(architecture).state_dict()
    name = "embedding.word_embeddings.weight"
    whole = to_hf(architecture, state)
    padded = to_hf(architecture, state | {name: torch.cat([state[name], torch.ones(3, 32)])})
    assert torch.equal(padded["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])


def test_missing_and_unknown_parameters_are_named():
    architecture = architecture_of("granite")
    state = dict(random_model(architecture).state_dict())
    with pytest.raises(CheckpointError, match=r"'output_layer\.bias' is not part of family"):
        to_hf(architecture, state | {"output_layer.bias": torch.zeros(1)})
    hf_state = to_hf(architecture, state)
    with pytest.raises(CheckpointError, match="'extra' is not part of family"):
        from_hf(architecture, hf_state | {"extra": torch.zeros(1)})
    del state["decoder.layers.1.mlp.linear_fc2.weight"]
    with pytest.raises(CheckpointError, match=r"'decoder\.layers\.1\.mlp\.linear_fc2\.weight' is missing"):
        to_hf(architecture, state)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("granite", {"position_embedding": "none"}, "position_embedding='none'"),
        ("granite", {"sliding_window": 8}, "sliding_window=8"),
        ("granite", {"family": "granit"}, "'granit' is not supported"),
        ("llama", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
        ("mistral-window", {"activation": "squared_relu"}, "activation='squared_relu'"),
        ("granite-h", {"hybrid_pattern": "M-*MM-"}, "before each"),
        ("granite-h", {"mamba_num_heads": 7}, "multiple of hidden_size"),
        ("nemotron-h", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
        ("nemotron-h", {"position_embedding": "rope"}, "position_embedding='rope'"),
        ("nemotron-h", {"hybrid_pattern": None}, "hybrid_pattern"),
    ],
)
def test_what_a_family_cannot_express_is_refused(name, change, named):
    with pytest.raises(ConfigError, match=named):
        hf_config(dataclasses.replace(architecture_of(name), **change))


def test_a_tokenizer_is_needed_and_its_files_are_copied(tokenizer_folder, tmp_path):
    architecture = architecture_of("granite")
    model = random_model(architecture)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        export_running([model], architecture, tmp_path, tokenizer=tmp_path / "empty")
    with pytest.raises(ArtifactError, match="no tokenizer"):
        export_running([model], architecture, tmp_path)
    (tmp_path / "out").mkdir()
    export_running([model], architecture, tmp_path / "out", tokenizer=tokenizer_folder)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        tokenizer_folder / "tokenizer.json"
    ).read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["eos_token_id"] == 0
    assert config["dtype"] == "float32"
