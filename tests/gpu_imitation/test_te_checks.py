"""Whatever our settings accept or choose passes Transformer Engine's own conditions, over many models and layouts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from gpu_imitation import te_checks
from gpu_imitation.te_checks import RECIPES, Attention, Machine, refusals
from megatron_prism.errors import ConfigError, PrismError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training import precision
from megatron_prism.training.kernels import CP_COMMUNICATION, KernelSettings

LENGTH = 8192
# Heads, key and value heads, and window of LLaMA 3 and Granite, Mistral 7B, Nemotron-H, and two that divide badly.
SHAPES = {
    "llama-3": (32, 8, None),
    "mistral-7b": (32, 8, 4096),
    "nemotron-h": (64, 8, None),
    "two-groups": (24, 2, 1024),
    "six-groups": (24, 6, None),
}


def architecture(name: str) -> Architecture:
    heads, groups, window = SHAPES[name]
    return Architecture(
        "mistral", 1024, heads * 16, 4, 512, heads, groups, 16, max_position_embeddings=LENGTH, sliding_window=window
    )  # fmt: skip


def accepted(settings: KernelSettings, model: Architecture, parallel: ParallelConfig) -> Attention | None:
    """What TE's attention would get; None if we refuse."""
    try:
        model.check_parallel(parallel)
        parallel.check_sequence(LENGTH)
        settings.check(model, parallel, "te")
    except PrismError:
        return None
    fields = settings.transformer_fields(model, parallel, "te", gpu=True)
    return Attention(
        heads=model.num_attention_heads // parallel.tensor_model_parallel_size,
        groups=model.num_query_groups // parallel.tensor_model_parallel_size,
        tokens=LENGTH,
        cp_size=parallel.context_parallel_size,
        cp_comm_type=fields.get("cp_comm_type", "p2p"),
        window=model.sliding_window,
    )


def cases():
    layouts = [
        ParallelConfig(tensor_model_parallel_size=tp, context_parallel_size=cp)
        for tp, cp in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16))
    ]
    for name, parallel, communication in itertools.product(SHAPES, layouts, CP_COMMUNICATION):
        yield name, architecture(name), parallel, communication


def test_transformer_engine_accepts_what_we_accept():
    checked = 0
    for name, model, parallel, communication in cases():
        seen = accepted(KernelSettings(cp_comm_type=communication), model, parallel)
        if seen is not None:
            assert refusals(seen) == [], (name, parallel, communication)
            checked += 1
    assert checked > 150


def test_auto_finds_a_way_where_there_is_one():
    for name, model, parallel, communication in cases():
        if accepted(KernelSettings(cp_comm_type=communication), model, parallel) is not None:
            assert accepted(KernelSettings(), model, parallel) is not None, (name, parallel)


def test_the_table_refuses():
    """Otherwise the tests above would say nothing."""
    fits = Attention(heads=32, groups=8, tokens=LENGTH, cp_size=4, cp_comm_type="a2a", window=4096)
    assert refusals(fits) == []
    broken = {
        "cp_comm_type": "p2p",
        "cp_size": 16,
        "tokens": LENGTH + 2,
        "groups": 12,
    }
    for name, value in broken.items():
        assert refusals(replace(fits, **{name: value})), name


def test_a_window_never_travels_by_p2p_even_if_the_check_is_taken_out(monkeypatch):
    """Negative control: without our check, TE's condition is what fails."""
    monkeypatch.setattr(KernelSettings, "check", lambda *arguments: None)
    parallel = ParallelConfig(context_parallel_size=4)
    seen = accepted(KernelSettings(cp_comm_type="p2p"), architecture("mistral-7b"), parallel)
    assert refusals(seen) == [te_checks.ATTENTION[0].rule]


@pytest.mark.parametrize("cuda", [(12, 4), (12, 9), (13, 0)])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_refused_where_transformer_engine_refuses_it(recipe, capability, cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.version, "cuda", f"{cuda[0]}.{cuda[1]}")
    monkeypatch.setattr("megatron.core.utils.is_te_min_version", lambda *arguments, **named: True)
    if RECIPES[recipe].refuses(Machine(capability, cuda)):
        with pytest.raises(ConfigError, match=f"fp8_recipe={recipe}"):
            precision.check_recipe_here(recipe)
    else:
        precision.check_recipe_here(recipe)
