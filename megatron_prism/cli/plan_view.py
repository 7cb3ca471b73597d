"""How `prism plan` shows memory, time and searches in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.memory import Memory
from megatron_prism.planning.search import Found
from megatron_prism.planning.stage_plan import GB, StagePlan

COLUMNS = [
    *("stage", "GPUs", "layout", "GB", "free", "step s", "tokens/s/GPU", "MFU", "hours", "GPU-hours"),
    *("disk GB", "at most"),
]
BAR = 40
MEANING = {
    "weights": "the model's weights on this GPU",
    "gradients": "buffers in which gradients are summed",
    "optimizer": "main weights and moments that this rank owns",
    "reference": "the reference model",
    "activations": "kept for the backward pass",
    "working": "the backward pass of one layer",
    "loss": "logits of a chunk and their gradient",
    "cache": "keys, values and states of sampling",
    "update": "copies of gradients for the update",
    "communication": "buffers of NCCL (assumption)",
    "fixed": "CUDA context and workspaces (assumption)",
    "slack": "of PyTorch's allocator (assumption)",
}


def stage_rows(plans: Sequence[StagePlan], gpu: GpuProfile) -> list[list[str]]:
    """A row for each stage, and the sum."""
    rows = [_row(plan, gpu) for plan in plans]
    return [*rows, ["total", *[""] * 7, *_costs(plans)]] if len(plans) > 1 else rows


def _row(plan: StagePlan, gpu: GpuProfile) -> list[str]:
    memory, step, mfu = plan.memory, plan.step, plan.mfu(gpu)
    return [
        plan.name,
        str(plan.gpus or ""),
        plan.layout,
        "" if memory is None else f"{memory.total / GB:.1f}",
        "" if memory is None else f"{(gpu.memory - memory.total) / GB:.1f}",
        "" if step is None else f"{step.seconds:.2f}",
        "" if step is None else f"{step.tokens_per_second:,.0f}",
        "" if mfu is None or plan.kind == "rl" else f"{mfu:.0%}",
        f"{plan.hours:,.1f}",
        f"{plan.gpu_hours:,.0f}" if plan.gpus else "",
        f"{plan.disk / GB:,.0f}",
        f"{plan.disk_peak / GB:,.0f}",
    ]


def _costs(plans: Sequence[StagePlan]) -> list[str]:
    return [
        f"{sum(plan.hours for plan in plans):,.1f}",
        f"{sum(plan.gpu_hours for plan in plans):,.0f}",
        f"{sum(plan.disk for plan in plans) / GB:,.0f}",
        f"{max(plan.disk_peak - plan.disk for plan in plans) / GB + sum(plan.disk for plan in plans) / GB:,.0f}",
    ]


def memory_chart(title: str, memory: Memory, gpu: GpuProfile) -> Table:
    """Where every gigabyte of the peak goes: a table with a bar per part, and what is free."""
    made = Table(title=title, title_justify="left", header_style="bold")
    made.add_column("part")
    made.add_column("GB", justify="right")
    made.add_column("", min_width=BAR)
    made.add_column("what it is")
    for name, size in memory.peak_parts().items():
        if size:
            made.add_row(name, f"{size / GB:.2f}", _bar(size / gpu.memory), MEANING[name])
    made.add_section()
    made.add_row("peak", f"{memory.total / GB:.2f}", _bar(memory.total / gpu.memory), "the sum")
    free = gpu.memory - memory.total
    made.add_row(
        "free", f"{free / GB:.2f}", _bar(max(0.0, free) / gpu.memory), f"of {gpu.memory / GB:.0f} GB"
    )
    return made


def time_chart(title: str, parts: dict[str, float]) -> Table:
    """Seconds by part, with a bar for each."""
    made = Table(title=title, title_justify="left", header_style="bold")
    made.add_column("part")
    made.add_column("seconds", justify="right")
    made.add_column("share", justify="right")
    made.add_column("", min_width=BAR)
    whole = sum(parts.values())
    for name, seconds in sorted(parts.items(), key=lambda each: -each[1]):
        if seconds:
            made.add_row(name, f"{seconds:.3f}", f"{seconds / whole:.1%}", _bar(seconds / whole))
    return made


def search_tables(name: str, found: Found, gpu: GpuProfile, most: int = 5) -> list[Table]:
    """The best layouts, and why the others were refused."""
    best = Table(
        title=f"{name}: layouts that fit, the fastest first", title_justify="left", header_style="bold"
    )
    for column in ("layout", "GB", "free", "step s", "tokens/s/GPU"):
        best.add_column(column, justify="left" if column == "layout" else "right")
    for each in found.ranked[:most]:
        best.add_row(
            each.option.describe(),
            f"{each.memory.total / GB:.1f}",
            f"{(gpu.memory - each.memory.total) / GB:.1f}",
            f"{each.time.seconds:.2f}",
            f"{each.time.tokens_per_second:,.0f}",
        )
    refused = Table(title=f"{name}: refused", title_justify="left", header_style="bold")
    refused.add_column("layouts", justify="right")
    refused.add_column("the first one's reason")
    for reason in sorted(found.refused.values(), key=lambda each: (-each.count, each.example)):
        refused.add_row(f"{reason.count:,}", reason.example)
    return [best, refused]


def _bar(share: float) -> str:
    return "█" * max(0, min(BAR, round(share * BAR)))
