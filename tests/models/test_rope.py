"""Rotary scaling: transformers' numbers, read strictly, written back exactly, and seen in the logits when wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from tiny_models import CONFIGS, LLAMA3, VOCABULARY, YARN, make_checkpoint
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.logits import compare, folder_outputs
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import softmax_scale
from megatron_prism.models.families import architecture_from_config, hf_config
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.rope import RopeScaling, inverse_frequencies
from megatron_prism.models.rope_config import read_rope, rope_to_config
from megatron_prism.platform.process_groups import session

LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
DYNAMIC = {**LINEAR, "rope_type": "dynamic"}
PUBLISHED_YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768,
}  # fmt: skip
ROPES = {
    "yarn": YARN,
    "yarn as published": PUBLISHED_YARN,
    "yarn not truncated": {**YARN, "truncate": False},
    "yarn with a factor": {**YARN, "attention_factor": 1.3},
    "yarn with both mscales": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn with one mscale": {**YARN, "mscale": 0.7},
    "yarn of factor 1": {**YARN, "factor": 1.0},
    "yarn with all kept": {**PUBLISHED_YARN, "beta_fast": 1e-5, "beta_slow": 1e-6},
    "yarn with none kept": {**YARN, "original_max_position_embeddings": 1},
    "linear": LINEAR,
    "dynamic": DYNAMIC,
    "llama3": LLAMA3,
}
TOKENS = torch.randint(VOCABULARY, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


def read(rope: dict, spelling: str = "new") -> tuple[float, RopeScaling | None]:
    old = {key: value for key, value in rope.items() if key != "rope_theta"}
    config = {
        "new": {"rope_parameters": rope},
        "old": {"rope_theta": rope["rope_theta"], "rope_scaling": old},
        "theta in the old block": {"rope_scaling": rope},
    }[spelling]
    return read_rope(ConfigReader(config, "llama"), 131072)


@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_transformers(name, head_dim):
    config = LlamaConfig(head_dim=head_dim, rope_parameters=dict(ROPES[name]), max_position_embeddings=131072)
    expected, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
    theta, scaling = read(ROPES[name])
    assert scaling is not None
    found = inverse_frequencies(head_dim, theta, scaling)
    assert scaling.attention_scaling == pytest.approx(factor, rel=1e-12)
    if name == "llama3":
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    else:
        # After 131,072 positions the last bit of a frequency is an angle of 0.01: no bit may differ.
        assert torch.equal(found, expected)


@pytest.mark.parametrize("spelling", ["old", "new", "theta in the old block"])
@pytest.mark.parametrize("name", ROPES)
def test_what_is_written_is_what_was_read(name, spelling):
    theta, scaling = read(ROPES[name], spelling)
    written = rope_to_config(theta, scaling)
    assert written["rope_parameters"] == ROPES[name]
    assert written["rope_scaling"] | {"rope_theta": written["rope_theta"]} == ROPES[name]
    for keys in (["rope_parameters"], ["rope_theta", "rope_scaling"], list(written)):
        read_back = ConfigReader({key: written[key] for key in keys}, "llama")
        assert read_rope(read_back, 131072) == (theta, scaling)
        assert not read_back.remarks


def test_an_explicit_default_is_no_difference():
    assert read(PUBLISHED_YARN) == read(
        {**PUBLISHED_YARN, "beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None}
    )


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({**YARN, "long_factor": [1.0]}, r"'long_factor'=\[1.0\] is not known for rope_type='yarn'"),
        ({**YARN, "full_attention": {}}, "'full_attention'={} is not known"),
        ({**YARN, "original_max_position_embeddings": None}, "embeddings=None: must be a number for rope_type='yarn'"),
        ({**YARN, "original_max_position_embeddings": 32.5}, "embeddings=32.5: must be a whole number"),
        ({**LINEAR, "factor": None}, "factor=None: must be a number for rope_type='linear'"),
        ({"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 32}, "'factor' is missing"),
        ({**YARN, "factor": "4"}, "factor='4': must be a number for rope_type='yarn'"),
        ({**YARN, "factor": True}, "factor=True: must be a number for rope_type='yarn'"),
        ({**YARN, "factor": 10**400}, "factor=1000.*: must be a number"),
        ({**YARN, "factor": float("nan")}, "factor=nan: must be a number for rope_type='yarn'"),
        ({**YARN, "factor": -2.0}, "factor=-2.0 must be greater than zero"),
        ({**YARN, "truncate": None}, "truncate=None: must be true or false"),
        ({**YARN, "beta_slow": -4.0}, "beta_slow=-4.0 must be greater than zero"),
        ({**YARN, "rope_theta": None}, "rope_parameters: rope_theta=None: must be a number greater than 1"),
        ({**YARN, "rope_theta": "1e6"}, "rope_theta='1e6': must be a number greater than 1"),
        ({**YARN, "rope_type": ["yarn"]}, r"rope_type=\['yarn'\] is not supported"),
        ({**YARN, "rope_type": None}, "rope_type=None is not supported"),
        ({**YARN, "type": "linear"}, "rope_type='yarn' and type='linear' differ"),
        ({**YARN, "attention_factor": 0.0}, "attention_factor=0.0 must be greater than zero"),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({**LINEAR, "rope_type": "longrope"}, "rope_type='longrope' is not supported; supported: 'default', 'dynamic'"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "low_freq_factor=1.0 must be positive and below high"),
    ],
)  # fmt: skip
def test_a_config_is_read_strictly(rope, named):
    with pytest.raises(ConfigError, match=named):
        read(rope)


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({"rope_type": "yarn"}, "original_max_position_embeddings is missing; rope_type=yarn needs it"),
        ({"rope_type": "linear", "beta_fast": 1.0}, "beta_fast=1.0 is not used by rope_type=linear"),
        ({"rope_type": "yarm"}, "'yarm' is not possible; did you mean 'yarn'"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor=nan"),
    ],
)
def test_a_scaling_holds_the_numbers_of_its_type(numbers, named):
    with pytest.raises(ConfigError, match=named):
        RopeScaling(**({"factor": 2.0} | numbers))


@pytest.mark.parametrize("name", ROPES)
def test_an_architecture_keeps_its_scaling(name, tmp_path):
    made = architecture_from_config(CONFIGS["llama"] | {"rope_parameters": ROPES[name]})
    made.save(tmp_path / "architecture.json")
    assert Architecture.load(tmp_path / "architecture.json") == made
    assert architecture_from_config(hf_config(made)) == made


def test_an_older_architecture_file_is_read(tmp_path):
    path = tmp_path / "architecture.json"
    made = architecture_from_config(CONFIGS["llama-scaled-tied"])
    four = {key: value for key, value in LLAMA3.items() if key not in ("rope_type", "rope_theta")}
    path.write_text(json.dumps(asdict(made) | {"rope_scaling": four}))
    assert Architecture.load(path) == made
    path.write_text(json.dumps(asdict(made) | {"rope_scaling": {**four, "rope_type": "ntk"}}))
    with pytest.raises(CheckpointError, match=r"architecture.json: rope_scaling: rope_type='ntk'"):
        Architecture.load(path)


def test_the_attention_factor_is_in_the_softmax_scale():
    plain = architecture_from_config(CONFIGS["llama"])
    assert softmax_scale(plain) is None
    yarn = architecture_from_config(CONFIGS["llama"] | {"rope_parameters": ROPES["yarn with a factor"]})
    assert softmax_scale(yarn) == pytest.approx(8**-0.5 * 1.3**2)
    granite = architecture_from_config(CONFIGS["granite"] | {"rope_parameters": ROPES["yarn with a factor"]})
    assert softmax_scale(granite) == pytest.approx(0.3 * 1.3**2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(Hugging Face folder, the Megatron folder imported from it), made once per configuration."""
    made = {}

    def get(name, **changes):
        key = (name, *sorted(changes))
        if key not in made:
            root = tmp_path_factory.mktemp(name)
            (root / "megatron").mkdir()
            import_checkpoint(make_checkpoint(name, root / "hf", **changes), root / "megatron")
            made[key] = root / "hf", root / "megatron"
        return made[key]

    return get


# LLaMA and Mistral with YaRN are in CONFIGS, and so in tests/conversion/test_families.py; these have other seams.
@pytest.mark.parametrize("rope", [YARN, LINEAR, DYNAMIC], ids=["yarn", "linear", "dynamic"])
@pytest.mark.parametrize("name", ["granite-untied", "granite-h-rope-groups"])
def test_every_rotary_family_computes_it_as_transformers_does(name, rope, folders):
    hf, megatron = folders(name, rope_parameters=rope, head_dim=16)
    theirs = folder_outputs(hf, TOKENS, torch.float32)
    compared = compare(folder_outputs(megatron, TOKENS, torch.float32), theirs, 1e-4)
    assert compared.max_abs_difference <= compared.allowed(1e-4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama-yarn", {"attention_factor": 1.0}),
        ("llama-yarn", {"beta_slow": 1.5}),
        ("llama-yarn", {"truncate": False}),
        ("llama-yarn", {"factor": 4.1}),
        ("llama-yarn", {"original_max_position_embeddings": 64}),
        ("mistral-yarn", {"attention_factor": 1.31}),
        ("mistral-yarn", {"beta_fast": 3.9}),
        ("mistral-yarn", {"rope_theta": 101.0}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_wrong_number_shows_in_the_logits(name, change, folders, tmp_path):
    hf, megatron = folders(name)
    shutil.copytree(hf, tmp_path / "wrong")
    config = json.loads((hf / "config.json").read_text())
    config["rope_parameters"] |= change
    (tmp_path / "wrong/config.json").write_text(json.dumps(config))
    wrong = folder_outputs(tmp_path / "wrong", TOKENS, torch.float32)
    compared = compare(folder_outputs(megatron, TOKENS, torch.float32), wrong, 1e-4)
    assert compared.max_abs_difference > 10 * compared.allowed(1e-4)
