"""The log of a training run: for each step a console line, a line of metrics.jsonl and a TensorBoard point."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from megatron_prism.platform.console import get_logger
from megatron_prism.platform.hardware import Peak

logger = get_logger(__name__)


@dataclass
class StepRecord:
    """One line of metrics.jsonl. `tflops` is per device, and `mfu` is its share of the peak named in the receipt."""

    step: int
    consumed_tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    tflops: float
    mfu: float


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
    """metrics.jsonl and TensorBoard, written by rank 0.

    Args:
        resume_step: step of the checkpoint that the run resumes from, else 0. Lines of later steps are removed.
    """

    def __init__(self, out: Path, resume_step: int) -> None:
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
        self.started, self.first = time.perf_counter(), resume_step

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl; `record` must have a `step`."""
        self.file.write(json.dumps(record) + "\n")

    def seconds_left(self, step: int, steps: int) -> float:
        """Estimated from the mean time per step since the run started or resumed."""
        pace = (time.perf_counter() - self.started) / max(1, step - self.first)
        return pace * (steps - step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


class MetricsLog(RunLog):
    """The log of training on text, with a console line every `log_every` steps."""

    def __init__(self, out: Path, *, steps: int, peak: Peak, resume_step: int, log_every: int) -> None:
        super().__init__(out, resume_step)
        self.steps, self.peak, self.log_every = steps, peak, log_every

    def step(self, record: StepRecord) -> None:
        self.write(asdict(record))
        for name in ("loss", "lr", "grad_norm", "tokens_per_second", "mfu"):
            self.board.add_scalar(f"train/{name}", getattr(record, name), record.step)
        if record.step % self.log_every == 0 or record.step == self.steps:
            logger.info(
                "step %d/%d | tokens %s | loss %.4f | lr %.2e | grad norm %.3f | %.0f tokens/s | "
                "%.3f TFLOP/s | MFU %.1f%% of %s | ETA %.0f s",
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
                self.seconds_left(record.step, self.steps),
            )

    def validation(self, step: int, losses: dict[str, float]) -> None:
        self.write({"step": step, "validation": losses})
        for source, loss in losses.items():
            self.board.add_scalar(f"validation/{source}", loss, step)
        logger.info("step %d | validation %s", step, " | ".join(f"{k} {v:.3f}" for k, v in losses.items()))
