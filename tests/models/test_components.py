"""Every tensor of every published model has a component, and its sub-components are all of its rows."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_prism.models.components import COMPONENTS, tensor_parts
from megatron_prism.models.families import (
    FAMILIES,
    architecture_from_config,
    hf_shapes,
    published_config,
)

PUBLISHED = [name for family in FAMILIES.values() for name in family.published]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_row_of_every_tensor_is_one_subcomponent(name):
    architecture = architecture_from_config(published_config(name))
    found, shapes = tensor_parts(architecture), hf_shapes(architecture)
    assert list(found) == list(shapes)
    for tensor, parts in found.items():
        assert parts.component in COMPONENTS
        row = 0
        for part in parts.parts:
            assert part.row == row
            row += part.rows
        assert row == shapes[tensor][0]
    counted = Counter(parts.component for parts in found.values())
    assert ("head" in counted) == (not architecture.tie_word_embeddings)
    assert ("mamba" in counted) == architecture.is_hybrid
    assert counted["embedding"] == 1


def test_the_subcomponents_of_the_paper():
    def parts(model, tensor):
        architecture = architecture_from_config(published_config(model))
        found = tensor_parts(architecture)[tensor]
        return found.component, [(part.name, part.rows) for part in found.parts]

    dense, fused, hybrid = (
        "ibm-granite/granite-3.3-8b-base",
        "ibm-granite/granite-4.0-h-micro-base",
        "nvidia/Nemotron-H-8B-Base-8K",
    )
    assert parts(dense, "model.layers.3.self_attn.k_proj.weight") == ("attention", [("k", 1024)])
    assert parts(dense, "model.layers.3.self_attn.o_proj.weight") == ("attention", [("o", 4096)])
    assert parts(dense, "model.layers.3.mlp.up_proj.weight")[1] == [("up", 12800)]
    # One tensor in Granite 4, gate first.
    component, found = parts(fused, "model.layers.3.shared_mlp.input_linear.weight")
    assert component == "mlp"
    assert [name for name, _ in found] == ["gate", "up"]
    assert found[0][1] == found[1][1] == 8192
    # No gate in Nemotron-H.
    assert parts(hybrid, "backbone.layers.1.mixer.up_proj.weight")[1] == [("up", 21504)]
    # 128 heads of 64 channels, 8 groups of 128 states.
    assert parts(hybrid, "backbone.layers.0.mixer.in_proj.weight")[1] == [
        ("in_proj.z", 8192),
        ("in_proj.x", 8192),
        ("in_proj.B", 1024),
        ("in_proj.C", 1024),
        ("in_proj.dt", 128),
    ]
    assert parts(hybrid, "backbone.layers.0.mixer.A_log") == ("mamba", [("A_log", 128)])
    assert parts(hybrid, "backbone.layers.0.mixer.dt_bias") == ("mamba", [("dt", 128)])
    assert parts(hybrid, "backbone.layers.0.mixer.conv1d.bias")[1][0][0] == "conv1d"
    assert parts(hybrid, "backbone.layers.0.mixer.norm.weight")[0] == "norm"
    assert parts(hybrid, "lm_head.weight") == ("head", [("head", 131072)])
