"""Pieces 2, 3 and 5: the speed and memory of a training step, and where its time goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from recorder import Recorder, seconds_of, synchronize
from triton_scan import compare_scans, scan_of_mamba_ssm

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import parameter_count
from megatron_prism.models.layers.pointwise import use_compiled
from megatron_prism.models.specs_te import missing
from megatron_prism.planning.flops import flops_per_token
from megatron_prism.planning.memory import training_memory
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.hardware import GPU_PEAK_BF16, device, device_name, has_gpu, peak_memory_bytes
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

GIB = 2**30
# Recomputation and compilation; whether the scan is mamba_ssm's is a variant of its own.
VARIANTS = [("none", False), ("none", True), ("selective", True), ("full", False), ("full", True)]


class RandomTokens:
    """Samples of random tokens; speed does not depend on what they are."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self.tokens = torch.randint(vocab_size, (8, length + 1), generator=torch.Generator().manual_seed(0))
        self.mask, self.positions = torch.ones(length), torch.arange(length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.tokens[index % 8]
        return {
            "tokens": row[:-1],
            "labels": row[1:],
            "loss_mask": self.mask,
            "position_ids": self.positions,
        }


def measured_peak(size: int) -> float:
    """FLOP/s of a bf16 product of random matrices of `size` x `size`."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device()) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, repeats=20, warmup=3)


def data_sheet_peak() -> float | None:
    """The data sheet's bf16 FLOP/s of this card, if it is known."""
    return next((flops for name, flops in GPU_PEAK_BF16.items() if name in device_name()), None)


@contextmanager
def _compiled(enabled: bool) -> Iterator[None]:
    use_compiled(enabled)
    try:
        yield
    finally:
        use_compiled(False)


@contextmanager
def _trainer(architecture: Architecture, length: int, **settings: Any) -> Iterator[Trainer]:
    with session(seed=1):
        yield Trainer(
            architecture,
            ParallelConfig(),
            BatchConfig(length, micro_batch_size=1, global_batch_size=1),
            OptimizerSettings(),
            dtype=torch.bfloat16,
            **settings,
        )


def train_speed(
    architecture: Architecture,
    length: int,
    *,
    recompute: str,
    peak: float,
    steps: int,
    warmup: int = 2,
    compiled: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Tokens per second, MFU and memory of a training step on one sequence."""
    data = RandomTokens(architecture.vocab_size, length)
    settings = {"backend": "torch"} | settings
    with _compiled(compiled), _trainer(architecture, length, recompute=recompute, **settings) as trainer:
        losses: list[float] = []
        seconds = seconds_of(lambda: losses.append(trainer.step(data, 0, 1e-5)[0]), steps, warmup)
        memory = peak_memory_bytes() / GIB
    flops = flops_per_token(architecture, length) * length / seconds
    sheet = data_sheet_peak()
    planned = training_memory(architecture, ParallelConfig(), Workload(length, recompute=recompute))
    return {
        "tokens_per_second": round(length / seconds),
        "seconds_per_step": seconds,
        "tflops": flops / 1e12,
        "mfu_of_measured_matmul": flops / peak,
        "mfu_of_data_sheet": flops / sheet if sheet else None,
        "peak_memory_gib": round(memory, 2),
        "planned_memory_gib": round(planned.total / GIB, 2),
        "losses": losses,
    }


def measure_peak(record: Recorder, tiny: bool) -> float:
    """The speed of a matrix product, which MFU is a share of."""
    found = record.measure("bf16 matmul, TFLOP/s", lambda: measured_peak(64 if tiny else 8192) / 1e12, 60)
    return (found or (data_sheet_peak() or 1e12) / 1e12) * 1e12


def piece_2(record: Recorder, models: dict[str, Architecture], lengths: dict[str, int], tiny: bool) -> None:
    """8k tokens: recomputation and compilation."""
    peak = measure_peak(record, tiny)
    length, steps = lengths["8k"], 1 if tiny else 5
    for kind, architecture in models.items():
        print(f"{kind}: {parameter_count(architecture):,} parameters", flush=True)
        for recompute, compiled in VARIANTS:
            if compiled and tiny:
                continue

            measured = partial(
                train_speed,
                *(architecture, length),
                recompute=recompute,
                compiled=compiled,
                peak=peak,
                steps=steps,
            )
            name = f"{kind}, 8k, recompute {recompute}" + (", compiled" if compiled else "")
            record.measure(name, measured, 100)
    hybrid = models["hybrid"]
    record.measure("scan, ours against mamba_ssm", lambda: compare_scans(hybrid, length), 60)

    def with_triton_scan() -> dict[str, Any]:
        with scan_of_mamba_ssm():
            return train_speed(
                hybrid, length, recompute="selective", compiled=not tiny, peak=peak, steps=steps
            )

    record.measure("hybrid, 8k, recompute selective, compiled, scan of mamba_ssm", with_triton_scan, 100)
    for kind, architecture in models.items():
        if not missing(architecture.is_hybrid):
            for fp8 in (None, "hybrid"):
                record.measure(
                    f"{kind}, 8k, Transformer Engine" + (", FP8" if fp8 else ""),
                    lambda a=architecture, f=fp8: train_speed(
                        a, length, recompute="none", peak=peak, steps=steps, backend="te", fp8=f
                    ),
                )


def piece_3(record: Recorder, models: dict[str, Architecture], lengths: dict[str, int], tiny: bool) -> None:
    """32k and 128k tokens on one card."""
    peak = measure_peak(record, tiny)
    for name, steps, warmup in (("32k", 2, 1), ("128k", 1, 1)):
        for kind, architecture in models.items():
            measured = partial(
                train_speed,
                *(architecture, lengths[name]),
                recompute="full",
                compiled=not tiny,
                peak=peak,
                steps=steps,
                warmup=warmup,
            )
            record.measure(f"{kind}, {name}, recompute full", measured, 150)


def piece_5(record: Recorder, models: dict[str, Architecture], lengths: dict[str, int], tiny: bool) -> None:
    """The ten kernels that take the longest."""
    for kind, architecture in models.items():
        for recompute in ("none",) if tiny else ("selective", "full"):
            name = f"{kind}, profile, recompute {recompute}"
            record.measure(
                name, lambda a=architecture, r=recompute: top_kernels(a, lengths["8k"], r, not tiny), 150
            )


def top_kernels(
    architecture: Architecture, length: int, recompute: str, compiled: bool
) -> list[dict[str, Any]]:
    """The functions with the most time of their own on the device (on the CPU, if there is no device) in two steps."""
    from torch.profiler import ProfilerActivity, profile

    data = RandomTokens(architecture.vocab_size, length)
    on_gpu = (
        has_gpu()
        and torch.profiler.kineto_available()
        and ProfilerActivity.CUDA in (torch.profiler.supported_activities())
    )
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with _compiled(compiled), _trainer(architecture, length, recompute=recompute, backend="torch") as trainer:
        for _ in range(2):
            trainer.step(data, 0, 1e-5)
        synchronize()
        with profile(activities=activities) as profiler:
            for _ in range(2):
                trainer.step(data, 0, 1e-5)
            synchronize()
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if getattr(event, kind) > 0]
    total = sum(getattr(event, kind) for event in events)
    events.sort(key=lambda event: -getattr(event, kind))
    return [
        {
            "name": event.key[:100],
            "calls": event.count,
            "milliseconds": round(getattr(event, kind) / 1000, 3),
            "share": round(getattr(event, kind) / total, 4),
        }
        for event in events[:10]
    ]
