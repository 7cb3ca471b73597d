"""The memory of training on paper: against what layers really hold, and what every way of sharing it out saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_prism.models.architecture import ATTENTION, MLP, Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.families import (
    FAMILIES,
    architecture_from_config,
    parameter_count,
    published_config,
)
from megatron_prism.models.layers import mamba_scan
from megatron_prism.planning import activations
from megatron_prism.planning.activations import kept_per_token
from megatron_prism.planning.memory import training_memory
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.held_memory import HeldMemory
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.study.random_checkpoint import tiny_architecture

PUBLISHED = [name for family in FAMILIES.values() for name in family.published]
TOKENS, PIECE = 128, 32


@pytest.fixture(autouse=True, scope="module")
def running_session() -> Iterator[None]:
    with session(seed=1):
        yield


def held_bytes(architecture: Architecture, recompute: str) -> int:
    model = build_model(architecture, torch.bfloat16, recompute=recompute).bfloat16().train()
    hidden = torch.zeros(TOKENS, 1, architecture.hidden_size, dtype=torch.bfloat16).requires_grad_()
    angles = model.rotary_pos_emb(TOKENS) if architecture.position_embedding == "rope" else None
    with HeldMemory() as held:
        output = model.decoder(hidden_states=hidden, attention_mask=None, rotary_pos_emb=angles)
    assert output is not None
    return held.bytes()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_layer_holds_what_the_arithmetic_says(monkeypatch, name, recompute):
    """With three layers minus with two, for each kind of layer of every family."""
    monkeypatch.setattr(mamba_scan, "SEGMENT", PIECE)
    monkeypatch.setattr(activations, "SCAN_TOKENS", PIECE)
    tiny = tiny_architecture(architecture_from_config(published_config(name)), 64)
    # A window shorter than the row is computed block by block, which keeps no sum of the softmax.
    tiny = replace(tiny, sliding_window=None)
    for kind in dict.fromkeys(tiny.hybrid_pattern or "L"):
        two, three = (
            replace(tiny, num_layers=n, hybrid_pattern=kind * n if tiny.is_hybrid else None) for n in (2, 3)
        )
        measured = (held_bytes(three, recompute) - held_bytes(two, recompute)) / TOKENS
        kinds = kind if tiny.is_hybrid else (ATTENTION if recompute == "full" else ATTENTION + MLP)
        work = Workload(TOKENS, recompute=recompute)
        expected = sum(kept_per_token(tiny, each, ParallelConfig(), work) for each in kinds)
        assert measured == pytest.approx(expected, rel=0.02), kind


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_model(name):
    architecture = architecture_from_config(published_config(name))
    found = training_memory(architecture, ParallelConfig(), Workload(8)).weights / 2
    assert found == pytest.approx(parameter_count(architecture), rel=1e-3)


def test_sharing_out_needs_less():
    architecture = architecture_from_config(published_config(PUBLISHED[0]))

    def total(work: Workload, **sizes: int | bool) -> float:
        return training_memory(architecture, ParallelConfig(**sizes), work).total  # type: ignore[arg-type]

    work = Workload(8192, micro_batches=8)
    one = total(work)
    assert total(work, data_parallel_size=4) < one
    assert total(work, tensor_model_parallel_size=2) < one
    sequence = total(work, tensor_model_parallel_size=2, sequence_parallel=True)
    assert sequence < total(work, tensor_model_parallel_size=2)
    assert total(work, context_parallel_size=2) < one
    assert total(work, pipeline_model_parallel_size=2) < one
    full, selective = (total(replace(work, recompute=mode)) for mode in ("full", "selective"))
    assert full < selective < one
    # The first stage of a pipeline holds as many micro-batches as there are stages.
    first = total(replace(work, micro_batches=1), pipeline_model_parallel_size=4)
    assert total(work, pipeline_model_parallel_size=4) > first
