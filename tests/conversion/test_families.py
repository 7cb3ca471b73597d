"""Every family: an imported model computes the same as transformers, and its export has the original bytes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, FAMILIES, VOCABULARY, make_checkpoint

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.logits import compare, folder_outputs
from megatron_prism.conversion.weights import MegatronWeights
from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.families import architecture_from_config, hf_config
from megatron_prism.platform.process_groups import ParallelConfig, session

TOKENS = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
ALL = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(Hugging Face folder, the Megatron folder imported from it), made once per configuration."""
    made = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in made:
            root = tmp_path_factory.mktemp(name)
            megatron = root / "megatron"
            megatron.mkdir()
            import_checkpoint(make_checkpoint(name, root / "hf", dtype), megatron)
            made[name, dtype] = root / "hf", megatron
        return made[name, dtype]

    return get


def changed(folder, copy, config=None, tensors=None):
    """A copy of a Hugging Face folder with some config keys and tensors replaced."""
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | (config or {}))
    )
    state = load_file(folder / "model.safetensors")
    save_file(state | (tensors(state) if tensors else {}), copy / "model.safetensors", {"format": "pt"})
    return copy


@ALL
def test_computes_what_transformers_computes(name, folders):
    hf, megatron = folders(name)
    theirs = folder_outputs(hf, TOKENS, torch.float32)
    compared = compare(folder_outputs(megatron, TOKENS, torch.float32), theirs, 1e-4)
    assert compared.max_abs_logit > 0.5
    assert compared.max_abs_difference <= compared.allowed(1e-4)
    assert compared.top1_agreement == 1.0
    assert compared.cosine > 1 - 1e-6
    assert compared.departs is None


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bf16_ranks_the_same_token_first(name, tmp_path):
    hf = make_checkpoint(name, tmp_path / "hf", torch.bfloat16, confident=True)
    (tmp_path / "megatron").mkdir()
    import_checkpoint(hf, tmp_path / "megatron")
    tokens = torch.randint(VOCABULARY, (16, 100), generator=torch.Generator().manual_seed(4))
    theirs = folder_outputs(hf, tokens, torch.bfloat16)
    ours = folder_outputs(tmp_path / "megatron", tokens, torch.bfloat16)
    assert compare(ours, theirs, 1e-4).top1_agreement >= 0.99


@pytest.mark.parametrize("name", FAMILIES)
def test_the_error_in_bf16_is_not_larger_than_transformers(name, folders):
    hf, megatron = folders(name, torch.bfloat16)
    tokens = torch.randint(VOCABULARY, (16, 100), generator=torch.Generator().manual_seed(4))
    exact = folder_outputs(hf, tokens, torch.float32).logits
    ours, theirs = (
        float((folder_outputs(folder, tokens, torch.bfloat16).logits - exact).square().mean().sqrt())
        for folder in (megatron, hf)
    )
    assert 0 < ours < 1.2 * theirs


@ALL
def test_a_round_trip_gives_the_same_bytes(name, folders, tmp_path):
    hf, megatron = folders(name)
    export_checkpoint(MegatronWeights(megatron), tmp_path)
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        assert values.dtype is after[tensor].dtype
        assert values.numpy().tobytes() == after[tensor].numpy().tobytes(), tensor
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (hf / file).read_bytes() == (tmp_path / file).read_bytes(), file


@ALL
def test_a_config_made_from_the_architecture_equals_the_original(name, folders):
    read = architecture_from_config(json.loads((folders(name)[0] / "config.json").read_text()))
    assert architecture_from_config(hf_config(read)) == read


ROPE = {"rope_type": "default", "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama-scaled-tied", {"rope_parameters": ROPE}),
        ("llama-one-group", {"rms_norm_eps": 1e-5}),
        ("mistral-window", {"sliding_window": 8}),
        ("mistral-window", {"sliding_window": None}),
        ("granite", {"attention_multiplier": 0.31}),
        ("granite", {"embedding_multiplier": 6.01}),
        ("granite", {"residual_multiplier": 0.41}),
        ("granite", {"logits_scaling": 4.01}),
        ("granite4", {"position_embedding_type": None}),
        ("granite-h", {"rms_norm_eps": 1e-4}),
        ("granite-h", {"position_embedding_type": "rope"}),
        ("granite-h", {"residual_multiplier": 0.41}),
        ("nemotron-h", {"layer_norm_epsilon": 1e-4}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_wrong_config_value_shows_in_the_logits(name, config, folders, tmp_path):
    hf, megatron = folders(name)
    wrong = folder_outputs(changed(hf, tmp_path / "wrong", config), TOKENS, torch.float32)
    compared = compare(folder_outputs(megatron, TOKENS, torch.float32), wrong, 1e-4)
    assert compared.max_abs_difference > compared.allowed(1e-4)


def swap_heads(tensor):
    return tensor.view(4, 8, -1)[[0, 2, 1, 3]].flatten(0, 1)


@pytest.mark.parametrize(
    ("name", "tensor", "damage", "where"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.weight", swap_heads, "layer 1"),
        ("granite", "model.layers.2.mlp.gate_proj.weight", lambda t: t.flip(0), "layer 2"),
        ("granite4", "model.layers.0.shared_mlp.input_linear.weight", lambda t: t.roll(48, 0), "layer 0"),
        ("granite-h", "model.layers.2.mamba.in_proj.weight", lambda t: t.roll(64, 0), "layer 2"),
        ("nemotron-h", "backbone.layers.3.mixer.q_proj.weight", swap_heads, "layer 3"),
        ("nemotron-h", "backbone.layers.2.mixer.D", lambda t: t + 0.1, "layer 2"),
        ("mistral-window", "model.embed_tokens.weight", lambda t: t.flip(0), "the embedding"),
    ],
)
def test_a_wrong_tensor_shows_and_the_layer_is_named(name, tensor, damage, where, folders, tmp_path):
    hf, megatron = folders(name)
    wrong = changed(
        hf, tmp_path / "wrong", tensors=lambda state: {tensor: damage(state[tensor]).contiguous()}
    )
    ours = folder_outputs(megatron, TOKENS, torch.float32)
    compared = compare(ours, folder_outputs(wrong, TOKENS, torch.float32), 1e-4)
    assert compared.max_abs_difference > compared.allowed(1e-4)
    assert compared.departs == where


def test_the_comparison_turns_off_transformers_clamp_of_dt(folders, monkeypatch):
    from megatron_prism.models.families import FAMILIES as registry

    hf, megatron = folders("nemotron-h")
    assert "time_step_min" in json.loads((hf / "config.json").read_text())
    monkeypatch.setitem(registry["nemotron_h"].for_comparison, "time_step_min", 0.001)
    clamped = folder_outputs(hf, TOKENS, torch.float32)
    assert compare(folder_outputs(megatron, TOKENS, torch.float32), clamped, 1e-4).max_abs_difference > 1e-3


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}, "rope_parameters": None}, "longrope"),
        ("llama", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "llama3"),
        ("llama", {"qk_norm": True}, "key 'qk_norm'=True is not known for llama"),
        (
            "llama",
            {"qk_norm": True, "softcap": 30.0, "eta_cutoff": 0.1},
            "keys 'qk_norm'=True, 'softcap'=30.0 are",
        ),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        (
            "llama",
            {"model_type": "gpt2"},
            "'gpt2' is not supported; supported: granite, granitemoehybrid, llama",
        ),
        ("mistral-window", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("granite4", {"num_local_experts": 8}, "num_local_experts=8"),
        ("granite4", {"position_embedding_type": "alibi"}, "alibi"),
        ("granite-h", {"mamba_proj_bias": True}, "mamba_proj_bias"),
        ("granite-h", {"mamba_d_conv": 3}, "mamba_d_conv"),
        ("granite-h", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("granite-h", {"layer_types": ["mamba", "moe", "mamba"]}, "moe"),
        ("nemotron-h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act"),
        ("nemotron-h", {"use_conv_bias": False}, "use_conv_bias"),
        ("nemotron-h", {"sliding_window": 64}, "sliding_window"),
        ("nemotron-h", {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "type": "linear"}, "rope_parameters": None},
            "differ",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "and rope_scaling .linear, "),
        ("nemotron-h", {"hybrid_override_pattern": "MEM*-M", "layers_block_type": None}, "MEM"),
    ],
)
def test_what_would_change_the_maths_is_refused(name, change, named, folders):
    config = json.loads((folders(name)[0] / "config.json").read_text())
    with pytest.raises(ConfigError, match=named.replace("*", r"\*")):
        architecture_from_config(config | change)


def test_a_config_that_names_its_epsilon_twice_is_read():
    config = CONFIGS["nemotron-h"] | {"rms_norm_eps": 1e-5, "time_step_rank": 256}
    assert architecture_from_config(config) == architecture_from_config(CONFIGS["nemotron-h"])


def test_context_parallelism_has_to_fit_the_mamba_groups():
    architecture = architecture_from_config(CONFIGS["nemotron-h"] | {"n_groups": 3, "mamba_num_heads": 12})
    architecture.check_parallel(ParallelConfig(context_parallel_size=3))
    with pytest.raises(ParallelError, match="context_parallel_size=2: neither divides the 3 Mamba groups"):
        architecture.check_parallel(ParallelConfig(context_parallel_size=2))


def test_a_config_without_a_size_is_refused():
    config = hf_config(architecture_from_config(CONFIGS["granite"]))
    del config["hidden_size"]
    with pytest.raises(ConfigError, match="hidden_size"):
        architecture_from_config(config)
