"""What the planner says about one stage of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.memory import Memory
from megatron_prism.planning.search import RESERVE
from megatron_prism.planning.step_time import StepTime

GB = 1e9
HOUR = 3600.0


@dataclass
class StagePlan:
    """Memory, time and disk of one stage.

    Attributes:
        gpus: 0 for a stage that needs none.
        layout: in words.
        memory: of the GPU that needs the most; None without GPUs.
        step: seconds of a training step; None for other stages.
        parts: seconds of the whole stage by name.
        disk: bytes that stay when the stage is done.
        disk_peak: bytes while it runs.
        remarks: assumptions of this stage, and what does not fit.
    """

    name: str
    kind: str
    gpus: int = 0
    layout: str = ""
    memory: Memory | None = None
    step: StepTime | None = None
    steps: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    disk: float = 0.0
    disk_peak: float = 0.0
    remarks: list[str] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return sum(self.parts.values()) / HOUR

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    def fits(self, gpu: GpuProfile) -> bool:
        return self.memory is None or self.memory.total <= gpu.memory * (1 - RESERVE)

    def mfu(self, gpu: GpuProfile) -> float | None:
        """The model's FLOPs per second over the bf16 peak, also of FP8 runs."""
        return None if self.step is None else self.step.flops_per_second / gpu.peak["bf16"]

    def to_json(self, gpu: GpuProfile) -> dict[str, Any]:
        found: dict[str, Any] = {
            "stage": self.name,
            "kind": self.kind,
            "gpus": self.gpus,
            "layout": self.layout,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "seconds": self.parts,
            "disk_gb": self.disk / GB,
            "disk_peak_gb": self.disk_peak / GB,
            "remarks": self.remarks,
        }
        if self.memory is not None:
            found |= {
                "memory_gb": {name: size / GB for name, size in self.memory.parts().items()},
                "total_gb": self.memory.total / GB,
                "headroom_gb": (gpu.memory - self.memory.total) / GB,
                "fits": self.fits(gpu),
            }
        if self.step is not None:
            found |= {
                "step_seconds": self.step.seconds,
                "step_parts": self.step.parts,
                "steps": self.steps,
                "tokens_per_second_per_gpu": self.step.tokens_per_second,
                "mfu_of_bf16_peak": self.mfu(gpu),
            }
        return found
