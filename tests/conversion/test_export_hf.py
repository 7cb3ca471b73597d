from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from megatron_prism.conversion.export_hf import compare_logits, export_model
from megatron_prism.errors import ArtifactError, CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.families import architecture_from_config, from_hf, hf_config, to_hf
from megatron_prism.platform.process_groups import session

GRANITE = Architecture(
    family="granite",
    vocab_size=61,
    hidden_size=32,
    num_layers=3,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    rope_theta=5000.0,
    attention_multiplier=0.25,
    embedding_multiplier=6.0,
    residual_multiplier=0.4,
    logits_scaling=4.0,
)
NEMOTRON = Architecture(
    family="nemotron_h",
    vocab_size=61,
    hidden_size=32,
    num_layers=5,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=8,
    activation="squared_relu",
    max_position_embeddings=64,
    tie_word_embeddings=False,
    position_embedding="none",
    hybrid_pattern="M-M*-",
    mamba_num_heads=8,
    mamba_head_dim=8,
    mamba_state_dim=16,
    mamba_num_groups=2,
)
UNTIED = dataclasses.replace(GRANITE, tie_word_embeddings=False, attention_multiplier=None)
ALL = pytest.mark.parametrize(
    "architecture", [GRANITE, UNTIED, NEMOTRON], ids=["granite", "untied", "nemotron_h"]
)
TOKENS = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {"<|endoftext|>": 0, "<unk>": 1} | {chr(33 + i): 2 + i for i in range(59)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def random_model(architecture):
    """Weights large enough that attention, dt and every norm matter."""
    model = build_model(architecture)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("dt_bias"):
                # Small enough steps that transformers' default clamp of dt would show.
                parameter.copy_(noise - 6)
            elif parameter.dim() == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer_folder):
    made = {}

    def get(architecture):
        key = json.dumps(dataclasses.asdict(architecture))
        if key not in made:
            model, folder = random_model(architecture), tmp_path_factory.mktemp("export") / "model"
            export_model(model, architecture, tokenizer_folder, folder)
            made[key] = model, folder
        return made[key]

    return get


def tampered(folder, copy, config=None, tensors=None):
    """A copy of an export with some config keys or tensors replaced."""
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | (config or {}))
    )
    state = load_file(folder / "model.safetensors")
    save_file(state | (tensors(state) if tensors else {}), copy / "model.safetensors", {"format": "pt"})
    return copy


@ALL
def test_transformers_computes_the_same_logits(architecture, exported):
    model, folder = exported(architecture)
    compared = compare_logits(model, folder, TOKENS)
    assert compared.max_abs_logit > 0.5
    assert compared.max_abs_difference <= 1e-4 * min(1.0, compared.max_abs_logit)
    assert compared.top1_agreement == 1.0


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (GRANITE, {"attention_multiplier": 8**-0.5}),
        (GRANITE, {"embedding_multiplier": 1.0}),
        (GRANITE, {"residual_multiplier": 0.41}),
        (GRANITE, {"logits_scaling": 4.01}),
        (GRANITE, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        (NEMOTRON, {"time_step_min": 0.001}),
        (NEMOTRON, {"mlp_hidden_act": "relu"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.family,
)
def test_a_wrong_config_value_shows_in_the_logits(architecture, config, exported, tmp_path):
    model, folder = exported(architecture)
    wrong = tampered(folder, tmp_path / "wrong", config)
    assert compare_logits(model, wrong, TOKENS).max_abs_difference > 1e-3


@pytest.mark.parametrize(
    ("architecture", "name", "damage"),
    [
        (
            GRANITE,
            "model.layers.1.self_attn.q_proj.weight",
            lambda t: t.view(4, 8, -1)[[0, 2, 1, 3]].flatten(0, 1),
        ),
        (GRANITE, "model.layers.1.mlp.gate_proj.weight", lambda t: t.flip(0)),
        (
            NEMOTRON,
            "backbone.layers.3.mixer.q_proj.weight",
            lambda t: t.view(4, 8, -1)[[0, 2, 1, 3]].flatten(0, 1),
        ),
        (
            NEMOTRON,
            "backbone.layers.0.mixer.in_proj.weight",
            lambda t: torch.cat([t[64:128], t[:64], t[128:]]),
        ),
    ],
)
def test_a_permuted_tensor_shows_in_the_logits(architecture, name, damage, exported, tmp_path):
    model, folder = exported(architecture)
    wrong = tampered(
        folder, tmp_path / "wrong", tensors=lambda state: {name: damage(state[name]).contiguous()}
    )
    assert compare_logits(model, wrong, TOKENS).max_abs_difference > 1e-3


@ALL
def test_loads_with_the_auto_classes_and_generates(architecture, exported):
    _, folder = exported(architecture)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    out = model.generate(torch.tensor([tokenizer("ABC")["input_ids"]]), max_new_tokens=3, min_new_tokens=3)
    assert out.shape == (1, 6)


@ALL
def test_there_and_back_is_bit_equal(architecture):
    state = {
        k: v for k, v in random_model(architecture).state_dict().items() if not k.endswith("_extra_state")
    }
    back = from_hf(architecture, to_hf(architecture, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@ALL
def test_the_config_says_the_whole_architecture(architecture, exported):
    read = architecture_from_config(json.loads((exported(architecture)[1] / "config.json").read_text()))
    if architecture.attention_multiplier is None and architecture.family == "granite":
        architecture = dataclasses.replace(architecture, attention_multiplier=8**-0.5)
    assert read == architecture


def test_vocabulary_padding_is_left_out():
    state = random_model(GRANITE).state_dict()
    name = "embedding.word_embeddings.weight"
    whole = to_hf(GRANITE, state)
    padded = to_hf(GRANITE, state | {name: torch.cat([state[name], torch.ones(3, 32)])})
    assert torch.equal(padded["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])


def test_missing_and_unknown_parameters_are_named():
    state = dict(random_model(GRANITE).state_dict())
    with pytest.raises(CheckpointError, match=r"'output_layer\.bias' has no place"):
        to_hf(GRANITE, state | {"output_layer.bias": torch.zeros(1)})
    hf_state = to_hf(GRANITE, state)
    with pytest.raises(CheckpointError, match="'extra' has no place"):
        from_hf(GRANITE, hf_state | {"extra": torch.zeros(1)})
    del state["decoder.layers.1.mlp.linear_fc2.weight"]
    with pytest.raises(CheckpointError, match=r"'decoder\.layers\.1\.mlp\.linear_fc2\.weight' is missing"):
        to_hf(GRANITE, state)


@pytest.mark.parametrize(
    ("architecture", "named"),
    [
        (dataclasses.replace(GRANITE, position_embedding="none"), "position_embedding"),
        (dataclasses.replace(NEMOTRON, residual_multiplier=0.5), "residual_multiplier=0.5"),
        (dataclasses.replace(NEMOTRON, position_embedding="rope"), "position_embedding='rope'"),
        (dataclasses.replace(GRANITE, family="granit"), "did you mean 'granite'"),
    ],
)
def test_what_a_family_cannot_express_is_refused(architecture, named):
    with pytest.raises(ConfigError, match=named):
        hf_config(architecture)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "gpt2"}, "gpt2"),
    ],
)
def test_an_unsupported_hf_config_is_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        architecture_from_config(hf_config(GRANITE) | change)


def test_a_config_without_a_size_is_refused():
    config = hf_config(GRANITE)
    del config["hidden_size"]
    with pytest.raises(ConfigError, match="hidden_size"):
        architecture_from_config(config)


def test_export_is_atomic_and_replaces(exported, tokenizer_folder, tmp_path):
    model, _ = exported(GRANITE)
    out = tmp_path / "model"
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        export_model(model, GRANITE, tmp_path, out)
    with pytest.raises(ConfigError):
        export_model(model, dataclasses.replace(GRANITE, position_embedding="none"), tokenizer_folder, out)
    assert not out.exists()
    out.mkdir()
    (out / "old").touch()
    export_model(model, GRANITE, tokenizer_folder, out)
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
