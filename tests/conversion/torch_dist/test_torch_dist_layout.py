"""The keys and shapes of a streamed checkpoint are those that a built model needs."""

from __future__ import annotations

import pytest
from megatron.core.dist_checkpointing.mapping import apply_factories
from tiny_models import CONFIGS

from megatron_prism.conversion.torch_dist import layout
from megatron_prism.conversion.torch_dist.layout import all_tensor_slices
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import model_state
from megatron_prism.models.families import architecture_from_config, hf_shapes, parameter_count
from megatron_prism.platform.process_groups import session


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


def streamed(architecture):
    found = {}
    for rule, tensor_slice in all_tensor_slices(architecture):
        shape = tensor_slice.shape(rule.megatron_shape(architecture))
        found[tensor_slice.key] = (
            (architecture.num_layers, *shape) if tensor_slice.layer is not None else shape
        )
    return found


def built(architecture):
    state = model_state([build_model(architecture)])
    apply_factories(state)

    def leaves(value):
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            return [leaf for item in items for leaf in leaves(item)]
        return [value]

    return {tensor.key: tuple(tensor.global_shape) for tensor in leaves(state)}


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_shapes_are_those_of_the_model(name):
    architecture = architecture_from_config(CONFIGS[name])
    assert streamed(architecture) == built(architecture)


@pytest.mark.parametrize("name", ["granite", "nemotron-h"])
def test_the_comparison_sees_a_wrong_name(name, monkeypatch):
    monkeypatch.setattr(layout, "FUSED_NORMS", ())
    architecture = architecture_from_config(CONFIGS[name])
    assert streamed(architecture) != built(architecture)


@pytest.mark.parametrize("name", CONFIGS)
def test_layouts_cover_every_row_once(name):
    architecture = architecture_from_config(CONFIGS[name])
    for rule, _ in all_tensor_slices(architecture):
        blocks = rule.layout.row_blocks(architecture)
        rows = [block.megatron_row + i for block in blocks for i in range(block.rows)]
        assert rows == list(range(rule.megatron_shape(architecture)[0]))
        for part, shape in enumerate(rule.layout.hf_shapes(architecture)):
            taken = [block.hf_row + i for block in blocks if block.part == part for i in range(block.rows)]
            assert sorted(taken) == list(range(shape[0]))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_from_the_table(name):
    architecture = architecture_from_config(CONFIGS[name])
    model = build_model(architecture)
    assert parameter_count(architecture) == sum(p.numel() for p in model.parameters())
    assert len(hf_shapes(architecture)) == sum(len(rule.hf) for rule in layout.parameter_map(architecture))
