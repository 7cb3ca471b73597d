"""Activations: what ranks of many layouts hold after a forward pass, dense and hybrid, with every `recompute`.

A trainer runs its schedule on one rank of a fake process group, and every tensor that operations create is followed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_ranks import rank_of, stage_and_replica
from parallel_runs import layout, sample

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.layers import mamba_scan
from megatron_prism.planning import activations
from megatron_prism.planning.activations import held_activations
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.held_memory import HeldMemory
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.micro_batches import place
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.text_losses import forward_step
from megatron_prism.training.trainer import Trainer

TOKENS, PIECE = 256, 64
DENSE = Architecture("granite", 500, 128, 4, 352, 8, 4, 16, max_position_embeddings=TOKENS)
WINDOW = replace(DENSE, family="mistral", sliding_window=64, tie_word_embeddings=False)
HYBRID = Architecture(
    "nemotron_h", 500, 128, 4, 352, 8, 4, 16, activation="squared_relu", position_embedding="none",
    hybrid_pattern="M*M-", mamba_num_heads=16, mamba_head_dim=16, mamba_state_dim=16, mamba_num_groups=2,
    tie_word_embeddings=False, max_position_embeddings=TOKENS,
)  # fmt: skip
MODELS = {"dense": DENSE, "window": WINDOW, "hybrid": HYBRID}
# (layout, rank, micro-batches): the last rank of a pipeline has the loss.
LAYOUTS: list[tuple[dict[str, Any], int, int]] = [
    ({}, 0, 1),
    ({"tp": 2}, 1, 1),
    ({"tp": 2, "sp": True}, 0, 1),
    ({"cp": 2}, 1, 1),
    ({"cp": 4}, 2, 1),
    ({"tp": 2, "sp": True, "cp": 2, "dp": 2}, 3, 1),
    ({"pp": 2}, 0, 4),
    ({"pp": 2}, 1, 4),
    ({"pp": 4}, 1, 8),
    ({"tp": 2, "sp": True, "pp": 2, "first": 3}, 0, 4),
]
DENSE_ONLY = [({"pp": 2, "vp": 2}, 0, 4), ({"pp": 2, "vp": 2}, 1, 4)]
CASES = [(model, *case) for model in ("dense", "hybrid") for case in LAYOUTS]
CASES += [("dense", *case) for case in DENSE_ONLY] + [
    ("window", {}, 0, 1),
    ("window", {"tp": 2, "sp": True}, 0, 1),
]
MODES = ("none", "selective", "full")


class Rows:
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return sample(torch.arange(TOKENS + 1))


def held(architecture: Architecture, parallel: ParallelConfig, rank: int, work: Workload) -> int:
    """Bytes that exist after the forward pass after which the most exists."""
    batch = work.micro_batch_size * work.micro_batches * parallel.data_parallel_size
    settings = BatchConfig(TOKENS, work.micro_batch_size, batch)
    with rank_of(parallel, rank):
        run = Trainer(
            architecture,
            parallel,
            settings,
            OptimizerSettings(),
            dtype=torch.bfloat16,
            backend="torch",
            recompute=work.recompute,
            trainable=work.trainable,
        )
        batches = run.share.read(Rows(), 0, batch)
        run.prepare_step(1e-3)
        found = []
        with HeldMemory() as memory:

            def step(rows: Any, model: Any) -> Any:
                result = forward_step(1, rows, model)
                found.append(memory.bytes())
                return result

            run.run_micro_batches(
                lambda: (place(each, "torch") for each in batches),
                step,
                count=len(batches),
                shape=(work.micro_batch_size, TOKENS),
                forward_only=False,
            )
    return max(found)


def difference(model: str, sizes: dict[str, Any], rank: int, work: Workload) -> float:
    """Computed / measured - 1."""
    parallel = layout(**sizes)
    stage, _ = stage_and_replica(parallel, rank)
    computed = held_activations(MODELS[model], parallel, work, stage)
    return computed / held(MODELS[model], parallel, rank, work) - 1


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Rows have several pieces of a scan, as long rows have."""
    monkeypatch.setattr(mamba_scan, "SEGMENT", PIECE)
    monkeypatch.setattr(activations, "SCAN_TOKENS", PIECE)


def test_ranks_hold_what_the_arithmetic_says():
    """Within 10 %, and within 3 % without pipelines, whose buffers are counted, not derived."""
    seen = set()
    for number, (model, sizes, rank, count) in enumerate(CASES):
        # Every case has one of the modes, and every mode each model.
        recompute = MODES[number % 3]
        work = Workload(TOKENS, 1 + number % 2, count, recompute=recompute)
        found = difference(model, sizes, rank, work)
        assert abs(found) < (0.1 if "pp" in sizes else 0.03), (model, sizes, rank, recompute, found)
        seen.add((model, recompute))
    assert {(model, mode) for model in ("dense", "hybrid") for mode in MODES} <= seen


# The first layers of the hybrid have no attention; the stages have one attention layer each.
LATE = replace(HYBRID, hybrid_pattern="M-M*M*M-", num_layers=8)
FROZEN: list[tuple[Architecture, dict[str, Any], int, int]] = [
    (DENSE, {"tp": 2, "sp": True}, 0, 1),
    (DENSE, {"pp": 2}, 0, 4),
    (DENSE, {"pp": 2}, 1, 4),
    (LATE, {}, 0, 1),
    (LATE, {"tp": 2, "sp": True}, 1, 1),
    (LATE, {"cp": 2}, 1, 1),
    (LATE, {"pp": 2, "first": 5}, 1, 4),
]


@pytest.mark.parametrize("recompute", MODES)
def test_frozen_layers_keep_less(recompute):
    """With attention only, inputs of frozen linear layers are not kept, nor anything before the first trained layer."""
    for architecture, sizes, rank, count in FROZEN:
        parallel = layout(**sizes)
        stage, _ = stage_and_replica(parallel, rank)
        work = Workload(TOKENS, 1, count, recompute=recompute, trainable="attention")
        measured = held(architecture, parallel, rank, work)
        found = held_activations(architecture, parallel, work, stage) / measured - 1
        print(sizes, rank, found)
        assert abs(found) < (0.1 if "pp" in sizes else 0.03), (sizes, rank, found)
        if recompute == "none":
            # Negative control: what is kept for the training of all parameters is far more.
            whole = held_activations(architecture, parallel, replace(work, trainable="all"), stage)
            assert whole / measured > 1.15, (sizes, rank)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", MODES)
def test_every_case_with_every_mode(recompute):
    for model, sizes, rank, count in CASES:
        found = difference(model, sizes, rank, Workload(TOKENS, 1, count, recompute=recompute))
        assert abs(found) < 0.1, (model, sizes, rank, found)


@pytest.mark.parametrize(
    "wrong", [{"recompute": "selective"}, {"micro_batches": 1}, {"micro_batch_size": 2}], ids=str
)
def test_a_wrong_workload_is_seen(wrong):
    """Negative control: the comparison tells these apart."""
    work = Workload(TOKENS, 1, 4)
    parallel = layout(pp=2)
    measured = held(DENSE, parallel, 0, work)
    assert abs(held_activations(DENSE, parallel, replace(work, **wrong), 0) / measured - 1) > 0.2


def test_caches_by_hand():
    """256 texts of 1,000 tokens: keys and values of the attention layer, states of the two Mamba layers."""
    work = Workload(1000, cached_tokens=256 * 1000, cached_texts=256)
    keys = 256 * 1000 * 2 * 4 * 16 * 2
    states = 256 * 2 * (16 * 16 * 16 * 4 + 4 * 2 * (16 * 16 + 2 * 2 * 16))
    assert activations.cache_bytes(HYBRID, layout(), work, 0) == keys + states
    assert activations.cache_bytes(HYBRID, layout(tp=2), work, 0) == (keys + states) / 2
