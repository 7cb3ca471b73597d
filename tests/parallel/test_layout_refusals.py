"""No layout passes our checks and then fails upstream: it is refused by one line before anything is built, or it works.

A process group of torch's `fake` backend has any size in one process: its collectives do nothing. So every check of
Megatron-Core runs, in the build, in the schedules and in the optimizer, as on one rank of a real job.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel_runs import HYBRID, Motifs, layout
from torch.testing._internal.distributed import fake_pg  # noqa: F401  registers the backend

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform import hardware
from megatron_prism.platform.process_groups import session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

MODELS = {
    "dense": Architecture("granite", 97, 32, 8, 64, 8, 4, 8),
    "untied": Architecture("llama", 96, 32, 4, 64, 4, 2, 8, tie_word_embeddings=False),
    "hybrid": HYBRID,
    "one group": Architecture(
        "nemotron_h", 96, 32, 4, 64, 4, 2, 8, activation="squared_relu", position_embedding="none",
        hybrid_pattern="*MM*", mamba_num_heads=8, mamba_head_dim=8, mamba_state_dim=8, mamba_num_groups=1,
    ),
}  # fmt: skip
WANTED = 40
LARGEST = 64


def draw(rng: random.Random) -> dict[str, Any]:
    dp = rng.choice([1, 1, 2, 3, 8])
    split = rng.choice(["even", "even", "even", "balanced"])
    ends = [None, None] if split == "balanced" else [rng.choice([None, None, 1, 2, 4]) for _ in range(2)]
    micro = rng.choice([1, 2, 3])
    return {
        "architecture": MODELS[rng.choice(list(MODELS))],
        "sizes": {
            "tp": rng.choice([1, 1, 2, 3, 4, 8]),
            "pp": rng.choice([1, 1, 2, 3, 4]),
            "cp": rng.choice([1, 1, 2, 3, 4]),
            "dp": dp,
            "sp": rng.random() < 0.4,
            "vp": rng.choice([None, None, 2, 4]),
            "first": ends[0],
            "last": ends[1],
            "split": split,
        },
        "batch": BatchConfig(
            rng.choice([24, 30, 31, 32]), micro, micro * dp * rng.choice([1, 2, 4, 8]) + rng.choice([0, 0, 1])
        ),
        "distributed_optimizer": rng.random() < 0.7,
        "trainable": rng.choice(["all", "attention"]),
        "recompute": rng.choice(["none", "full"]),
        "dtype": rng.choice(["fp32", "bf16"]),
    }


def stage(drawn: dict[str, Any]) -> Train:
    """The config of a layout; a ParallelError if our checks refuse it."""
    parallel = layout(**drawn["sizes"])
    parallel.use_distributed_optimizer = drawn["distributed_optimizer"]
    fields = {key: drawn[key] for key in ("architecture", "batch", "trainable", "recompute", "dtype")}
    return Train(mixture="shoebox-mcs", parallel=parallel, **fields)


@contextmanager
def one_rank_of(world: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    new_group = dist.new_group
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", str(world))
        patched.setenv("RANK", str(rank))
        patched.setattr(dist, "new_group", lambda *a, **k: new_group(*a, **k | {"backend": "fake"}))
        dist.init_process_group("fake", store=dist.HashStore(), rank=rank, world_size=world)
        try:
            yield
        finally:
            dist.destroy_process_group()


def train(config: Train, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the model and make a step on one rank."""
    with one_rank_of(config.world_size, rank, monkeypatch), session(config.parallel, 1):
        run = Trainer(
            config.architecture,
            config.parallel,
            config.batch,
            OptimizerSettings(),
            dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float32,
            backend="torch",
            trainable=config.trainable,
            recompute=config.recompute,
        )
        run.step(Motifs(config.batch.sequence_length), 0, 1e-3)


def test_forty_layouts_that_pass_our_checks_work_and_others_are_refused(monkeypatch):
    rng = random.Random(15)
    accepted = refused = 0
    seen = set()
    while accepted < WANTED:
        drawn = draw(rng)
        try:
            config = stage(drawn)
        except ParallelError:
            refused += 1
            continue
        if config.world_size > LARGEST:
            continue
        rank = -accepted % 2 * (config.world_size - 1)
        try:
            train(config, rank, monkeypatch)
        except Exception as problem:
            raise AssertionError(f"rank {rank} of {config.world_size}: {drawn}") from problem
        accepted += 1
        plain = {"split": "even", "vp": None, "first": None, "last": None, "sp": False}
        seen |= {key for key, value in drawn["sizes"].items() if value != plain.get(key, 1)}
    assert seen == {"tp", "pp", "cp", "dp", "sp", "vp", "first", "last", "split"}
    assert refused > WANTED


@pytest.mark.parametrize(
    ("sizes", "disabled"),
    [({"tp": 3}, "check_parallel"), ({"pp": 3}, "check_parallel"), ({"pp": 2, "vp": 3}, "check_parallel")],
)
def test_upstream_would_fail_where_our_check_is_missing(sizes, disabled, monkeypatch):
    """Negative control: this test sees a layout that cannot work."""
    drawn = draw(random.Random(1)) | {
        "architecture": MODELS["dense"], "batch": BatchConfig(24, 1, 6), "trainable": "all", "sizes": sizes,
    }  # fmt: skip
    with pytest.raises(ParallelError):
        stage(drawn)
    monkeypatch.setattr(Architecture, disabled, lambda self, parallel: None)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        train(stage(drawn), 0, monkeypatch)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """Otherwise a rank would ask for a device that this machine does not have."""
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    hardware.check_devices(4)
    with pytest.raises(ParallelError, match="8 processes on this machine, which has 4 GPUs"):
        hardware.check_devices(8)
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    hardware.check_devices(8)


@pytest.mark.parametrize(
    ("changes", "sizes", "named"),
    [
        (
            {"batch": BatchConfig(30, 2, 2)},
            {},
            r"micro_batch_size x sequence_length / context_parallel_size is 60",
        ),
        ({"batch": BatchConfig(48, 1, 1)}, {"cp": 4}, r"context_parallel_size is 12"),
        (
            {"architecture": replace(MODELS["dense"], ffn_hidden_size=32)},
            {"tp": 4},
            r"ffn_hidden_size / tensor_model_parallel_size is 8, .* only multiples of 16",
        ),
        (
            {"architecture": replace(HYBRID, mamba_num_groups=2)},
            {"tp": 2},
            r"the width of Mamba's in_proj / tensor_model_parallel_size is 84",
        ),
    ],
)
def test_sizes_that_fp8_does_not_support_are_refused(changes, sizes, named):
    """From Transformer Engine's own check, which has not been run here."""
    drawn = {"architecture": MODELS["dense"], "batch": BatchConfig(32, 1, 1)} | changes
    config = {"mixture": "shoebox-mcs", "dtype": "bf16", "fp8": "hybrid", "parallel": layout(**sizes)}
    with pytest.raises(ParallelError, match=named):
        Train(**config, **drawn)
    Train(**config | {"fp8": None, "parallel": layout()}, **drawn)
    Train(**config | {"parallel": layout()}, **drawn | {"batch": BatchConfig(32, 1, 1)})
