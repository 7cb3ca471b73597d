"""Every shipped layout fits GPUs of 80 GB, by the arithmetic of planning/memory.py, with at least 8 % left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_models import MODELS, data  # noqa: F401 (a fixture)

from megatron_prism.planning.memory import GB
from megatron_prism.rl.memory import reinforcement_memory
from megatron_prism.rl.stage import Reinforce
from megatron_prism.study.registry import load_recipe
from megatron_prism.training.memory import stage_memory
from megatron_prism.training.stage import Train

# What is left is for what the arithmetic does not see, such as fragmentation.
LIMIT = 80 * GB * 0.92


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_fits(name, data, tmp_path):  # noqa: F811
    values = {"checkpoint": str(tmp_path), "data": str(data), "prompts": str(data)}
    graph = load_recipe(name).build(values | {"long_context": True, "rl": True})
    seen = set()
    for stage in (node.stage for node in graph.nodes.values()):
        if isinstance(stage, Train):
            found = stage_memory(stage)
        elif isinstance(stage, Reinforce):
            found = reinforcement_memory(stage)
        else:
            continue
        seen.add(type(stage))
        assert found.total < LIMIT, found
    assert seen == {Train, Reinforce}


def test_a_layout_that_does_not_fit_is_seen(data, tmp_path):  # noqa: F811
    """Negative control: mid-training of the 24B model without recomputation, at four times the length."""
    graph = load_recipe("mistral-small-24b").build({"checkpoint": str(tmp_path), "data": str(data)})
    train = graph.node("midtrain").stage
    longer = replace(train, batch=replace(train.batch, sequence_length=32768))
    assert stage_memory(train).total < LIMIT < stage_memory(longer).total
