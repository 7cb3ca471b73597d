"""Extending a context: what is refused, and the resulting model and config."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import VOCABULARY, make_checkpoint

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.logits import compare, folder_outputs
from megatron_prism.conversion.weights import MegatronWeights
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.extension import ContextExtension, describe, extended
from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.models.model_folder import ARCHITECTURE
from megatron_prism.models.rope import RopeScaling
from megatron_prism.pipeline.config import from_mapping, to_mapping
from megatron_prism.platform.process_groups import session

LONG = 131072
LLAMA, MISTRAL, GRANITE, GRANITE_H, NEMOTRON = (
    architecture_from_config(published_config(name))
    for name in (
        "meta-llama/Llama-3.1-8B",
        "mistralai/Mistral-7B-v0.1",
        "ibm-granite/granite-3.3-8b-base",
        "ibm-granite/granite-4.0-h-micro-base",
        "nvidia/Nemotron-H-8B-Base-8K",
    )
)


def yarn(factor: float, original: int) -> RopeScaling:
    return RopeScaling(rope_type="yarn", factor=factor, original_max_position_embeddings=original)


@pytest.mark.parametrize(
    ("architecture", "extension", "changed"),
    [
        (GRANITE, ContextExtension(LONG), {}),
        (GRANITE, ContextExtension(2 * LONG, keep_rope=True), {"max_position_embeddings": 2 * LONG}),
        (LLAMA, ContextExtension(LONG, rope_theta=4e6), {"rope_theta": 4e6}),
        (
            LLAMA,
            ContextExtension(2 * LONG, rope_scaling=RopeScaling(16.0, 1.0, 4.0, 8192)),
            {"max_position_embeddings": 2 * LONG, "rope_scaling": RopeScaling(16.0, 1.0, 4.0, 8192)},
        ),
        (
            MISTRAL,
            ContextExtension(LONG, rope_scaling=yarn(4.0, 32768)),
            {"max_position_embeddings": LONG, "rope_scaling": yarn(4.0, 32768)},
        ),
        (NEMOTRON, ContextExtension(LONG), {"max_position_embeddings": LONG}),
        (GRANITE_H, ContextExtension(2 * LONG), {"max_position_embeddings": 2 * LONG}),
    ],
    ids=lambda value: value.family if isinstance(value, Architecture) else "",
)
def test_only_positions_and_rope_change(architecture, extension, changed):
    assert extended(architecture, extension) == replace(architecture, **changed)


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        (MISTRAL, {"max_position_embeddings": 4096}, "max_position_embeddings=4096: the model already has 32768"),
        (
            MISTRAL,
            {},
            "max_position_embeddings=131072: the model's rotary frequencies cover 32768 positions; set a rope_theta "
            "larger than 10000, a rope_scaling, or keep_rope=true",
        ),
        (MISTRAL, {"rope_theta": 10000.0}, "the model's rotary frequencies cover 32768"),
        (MISTRAL, {"rope_theta": 5000.0}, "rope_theta=5000: the model has 10000, and a smaller base"),
        (MISTRAL, {"rope_theta": 1e6, "keep_rope": True}, "keep_rope=true contradicts extension.rope_theta"),
        (
            MISTRAL,
            {"rope_scaling": yarn(2.0, 32768)},
            "factor=2: it stretches the original 32768 positions to 65536, but max_position_embeddings=131072 needs "
            "a factor of 4 or more",
        ),
        (
            MISTRAL,
            {"rope_scaling": yarn(4.0, 65536)},
            "original_max_position_embeddings=65536: must be at most the model's max_position_embeddings=32768",
        ),
        (MISTRAL, {"rope_scaling": RopeScaling(2.0, rope_type="linear")}, "to 65536"),
        (MISTRAL, {"rope_scaling": RopeScaling(8.0, rope_type="dynamic")}, "dynamic: it changes no frequency"),
        # LLaMA 3.1 has 131,072 positions, by scaling 8,192.
        (LLAMA, {"rope_scaling": RopeScaling(2.0, rope_type="linear")}, "stretches the original 8192 positions"),
        (NEMOTRON, {"rope_theta": 1e6}, "rope_theta: this nemotron_h model has no rotary positions"),
        (NEMOTRON, {"rope_scaling": yarn(16.0, 8192)}, "rope_scaling: this nemotron_h model has no"),
        (GRANITE_H, {"keep_rope": True}, "keep_rope: this granitemoehybrid model has no rotary"),
    ],
)  # fmt: skip
def test_an_invalid_extension_is_refused_by_its_key(architecture, changes, named):
    with pytest.raises(ConfigError, match=f"^extension.*{named}"):
        extended(architecture, ContextExtension(**({"max_position_embeddings": LONG} | changes)))


@pytest.mark.parametrize("field", ["max_position_embeddings", "rope_theta"])
def test_a_negative_number_is_refused(field):
    with pytest.raises(ConfigError, match=f"{field}=-1"):
        ContextExtension(**({"max_position_embeddings": LONG} | {field: -1}))


def test_a_scaling_that_the_familys_config_cannot_express_is_refused(monkeypatch):
    from megatron_prism.models import extension

    def without_scaling(architecture):
        config = published_config("meta-llama/Llama-3.1-8B")
        return config | {"max_position_embeddings": architecture.max_position_embeddings}

    monkeypatch.setattr(extension, "hf_config", without_scaling)
    with pytest.raises(
        ConfigError, match=r"rope_scaling: the config.json of family=llama cannot express yarn\(factor=16"
    ):
        extended(LLAMA, ContextExtension(LONG, rope_scaling=yarn(16.0, 8192)))


def test_the_description_names_changes_and_the_window():
    after = extended(MISTRAL, ContextExtension(LONG, rope_theta=1e6))
    assert after.sliding_window == 4096
    assert describe(MISTRAL, after) == (
        "max_position_embeddings 32768 -> 131072, rope_theta 10000 -> 1e+06, sliding_window=4096 stays: it still "
        "limits every layer"
    )
    assert describe(GRANITE, extended(GRANITE, ContextExtension(LONG))) == "nothing changes"
    assert describe(NEMOTRON, extended(NEMOTRON, ContextExtension(LONG))).endswith("no rotary positions")


def test_an_extension_is_read_back_from_a_task_file():
    extension = ContextExtension(LONG, rope_scaling=yarn(4.0, 32768))
    assert from_mapping(ContextExtension, json.loads(json.dumps(to_mapping(extension)))) == extension
    with pytest.raises(ConfigError, match="unknown key 'rope_thetta'; did you mean 'rope_theta'"):
        from_mapping(ContextExtension, {"max_position_embeddings": LONG, "rope_thetta": 1e6})


OLD, NEW = 48, 96
EXTENSIONS = {
    "llama": ContextExtension(NEW, rope_scaling=yarn(2.0, OLD)),
    "llama-scaled-tied": ContextExtension(NEW, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "mistral-window": ContextExtension(NEW, rope_theta=5e5),
    "granite": ContextExtension(NEW, keep_rope=True),
    "granite-untied": ContextExtension(NEW, rope_scaling=RopeScaling(2.0, rope_type="linear")),
    "granite-h": ContextExtension(NEW),
    "nemotron-h": ContextExtension(NEW),
}


def old_spelling(config: dict) -> dict:
    """As before transformers 5: two keys."""
    rope = config.pop("rope_parameters")
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    plain = scaling["rope_type"] == "default"
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling}


SPELLINGS = [(name, spelling) for name in EXTENSIONS for spelling in ("new", "old")]
# Nemotron-H has no rotary settings to spell.
SPELLINGS.remove(("nemotron-h", "old"))


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_the_exported_model_has_the_extension(name, spelling, tmp_path):
    hf = make_checkpoint(name, tmp_path / "hf", max_position_embeddings=OLD)
    carried = json.loads((hf / "config.json").read_text())
    if spelling == "old":
        carried = old_spelling(carried)
        (hf / "config.json").write_text(json.dumps(carried))
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    for folder in (megatron, back):
        folder.mkdir()
    import_checkpoint(hf, megatron)
    before = Architecture.load(megatron / ARCHITECTURE)
    after = extended(before, EXTENSIONS[name])
    # As the train stage leaves it: the extended architecture, and the files that came with the weights.
    after.save(megatron / ARCHITECTURE)
    export_checkpoint(MegatronWeights(megatron), back)

    config = json.loads((back / "config.json").read_text())
    assert architecture_from_config(config) == after
    assert config["max_position_embeddings"] == NEW
    rope = ("rope_parameters", "rope_theta", "rope_scaling")
    same_rope = (before.rope_theta, before.rope_scaling) == (after.rope_theta, after.rope_scaling)
    allowed = {"max_position_embeddings"} | (set() if same_rope else set(rope))
    assert {key for key in config | carried if config.get(key) != carried.get(key)} <= allowed
    assert all(torch.equal(value, load_file(back / "model.safetensors")[tensor])
               for tensor, value in load_file(hf / "model.safetensors").items())  # fmt: skip

    tokens = torch.randint(VOCABULARY, (1, NEW), generator=torch.Generator().manual_seed(0))
    with session(seed=1):
        compared = compare(*(folder_outputs(f, tokens, torch.float32) for f in (megatron, back)), 1e-4)
        assert compared.max_abs_difference <= compared.allowed(1e-4)
        with pytest.raises(ConfigError, match=f"96 tokens are more than max_position_embeddings={OLD}"):
            folder_outputs(hf, tokens, torch.float32)
        if not same_rope:
            (hf / "config.json").write_text(json.dumps(carried | {"max_position_embeddings": NEW}))
            unextended = compare(
                folder_outputs(megatron, tokens, torch.float32),
                folder_outputs(hf, tokens, torch.float32),
                1e-4,
            )
            assert unextended.max_abs_difference > 100 * unextended.allowed(1e-4)
