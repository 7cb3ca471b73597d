"""The log of a training run: for each step a console line, a line of metrics.jsonl and a TensorBoard point."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from megatron_prism.platform.console import get_logger
from megatron_prism.platform.hardware import Peak
from megatron_prism.training.trackers import Tracker

logger = get_logger(__name__)


@dataclass
class StepRecord:
    """One line of metrics.jsonl. `tflops` is per device, and `mfu` is its share of the peak named in the receipt.

    Attributes:
        source_loss, source_tokens: mean loss, and tokens with a loss, of each source in this step.
        seconds: the parts of the step, and of the checkpoint before it.
        memory_gib: of rank 0's process.
        component_norms: gradient norm of each component, if it was measured.
    """

    step: int
    consumed_tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    tflops: float
    mfu: float
    source_loss: dict[str, float] = field(default_factory=dict)
    source_tokens: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory_gib: dict[str, float] = field(default_factory=dict)
    component_norms: dict[str, float] = field(default_factory=dict)


def last_step(out: Path, step: int) -> dict[str, Any]:
    """The line of the last step up to `step` that has a loss in metrics.jsonl; empty if there is none."""
    last: dict[str, Any] = {}
    path = out / "metrics.jsonl"
    for line in path.read_text().splitlines() if step and path.exists() else ():
        # A killed run may have left an incomplete last line.
        record = json.loads(line) if line.endswith("}") else {}
        if record.get("step", step + 1) <= step and "loss" in record:
            last = record
    return last


class RunLog:
    """metrics.jsonl, TensorBoard and trackers, written by rank 0.

    Args:
        resume_step: step of the checkpoint that the run resumes from, else 0. Lines of later steps are removed.
        trackers: what else gets the numbers; the log closes them.
    """

    def __init__(self, out: Path, resume_step: int, trackers: Sequence[Tracker] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        kept = []
        if path.exists() and resume_step:
            # A killed run may have logged steps after its last checkpoint. They are repeated and logged again.
            for line in path.read_text().splitlines():
                if line.endswith("}") and json.loads(line)["step"] <= resume_step:
                    kept.append(line + "\n")
        path.write_text("".join(kept))
        self.file: TextIO = path.open("a", buffering=1)
        self.board: Any = SummaryWriter(str(out / "tensorboard"), purge_step=resume_step + 1)
        self.started, self.first, self.trackers = time.perf_counter(), resume_step, trackers

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl; `record` must have a `step`."""
        self.file.write(json.dumps(record) + "\n")

    def scalars(self, prefix: str, values: Mapping[str, Any], step: int) -> None:
        """Numbers for TensorBoard and the trackers; nested ones get longer names."""
        flat = dict(_flat(prefix, values))
        for name, value in flat.items():
            self.board.add_scalar(name, value, step)
        for tracker in self.trackers:
            tracker.log(flat, step)

    def seconds_left(self, step: int, steps: int) -> float:
        """Estimated from the mean time per step since the run started or resumed."""
        pace = (time.perf_counter() - self.started) / max(1, step - self.first)
        return pace * (steps - step)

    def close(self) -> None:
        self.file.close()
        self.board.close()
        for tracker in self.trackers:
            tracker.close()


class MetricsLog(RunLog):
    """The log of training on text, with a console line every `log_every` steps."""

    def __init__(
        self,
        out: Path,
        *,
        steps: int,
        peak: Peak,
        resume_step: int,
        log_every: int,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        super().__init__(out, resume_step, trackers)
        self.steps, self.peak, self.log_every = steps, peak, log_every

    def step(self, record: StepRecord) -> None:
        values = {name: value for name, value in asdict(record).items() if value != {}}
        self.write(values)
        self.scalars("train", values, record.step)
        if record.step % self.log_every == 0 or record.step == self.steps:
            logger.info(
                "step %d/%d | tokens %s | loss %.4f | lr %.2e | grad norm %.3f | %.0f tokens/s | "
                "%.3f TFLOP/s | MFU %.1f%% of %s | %s | ETA %.0f s",
                record.step,
                self.steps,
                f"{record.consumed_tokens:,}",
                record.loss,
                record.lr,
                record.grad_norm,
                record.tokens_per_second,
                record.tflops,
                100 * record.mfu,
                self.peak.name,
                " ".join(f"{name} {1000 * value:.0f} ms" for name, value in record.seconds.items()),
                self.seconds_left(record.step, self.steps),
            )

    def validation(self, step: int, losses: dict[str, float]) -> None:
        self.write({"step": step, "validation": losses})
        self.scalars("validation", losses, step)
        logger.info("step %d | validation %s", step, " | ".join(f"{k} {v:.3f}" for k, v in losses.items()))

    def retention(self, step: int, found: Mapping[str, Mapping[str, float]]) -> None:
        """What the model forgot and gained since the first step."""
        self.write({"step": step, "retention": found})
        self.scalars("retention", found, step)
        logger.info(
            "step %d | forgotten %s | gained %s",
            step,
            *(" ".join(f"{k} {v:+.3f}" for k, v in found[name].items()) for name in ("loss", "gain")),
        )


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}/{name}", float(value)
