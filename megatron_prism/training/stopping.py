"""When a run stops before its end: after a signal, on request, or when its time is up; all ranks at the same step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from megatron_prism.pipeline.stop_file import asked_to_stop
from megatron_prism.platform import stop_signals
from megatron_prism.platform.console import is_rank_zero


class Reason(IntEnum):
    """Why a run stops; ranks that know of different reasons agree on the largest."""

    NONE = 0
    TIME = 1
    REQUEST = 2
    SIGNAL = 3


DESCRIPTIONS = {
    Reason.TIME: "its time is up (stop_after_minutes)",
    Reason.REQUEST: "it was asked to stop",
    Reason.SIGNAL: "a signal asked it to stop",
}


class Stopping:
    """Asked once after every step. Use `may_stop`, which handles the signals.

    Args:
        out: the stage's folder, where a request to stop may be.
        minutes: how long the run may take; 0 for no limit.
    """

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.minutes, self.began = out, minutes, time.monotonic()

    def reason(self) -> Reason:
        """Why to stop now. All ranks call this at the same step and get the same answer."""
        import torch
        import torch.distributed as dist

        from megatron_prism.platform.hardware import device

        worst = torch.tensor([int(self._own())], dtype=torch.int32, device=device())
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        return Reason(int(worst.item()))

    def _own(self) -> Reason:
        """What this rank knows. A signal may reach one rank only; the others are in rank 0's hands."""
        if stop_signals.received():
            return Reason.SIGNAL
        if not is_rank_zero():
            return Reason.NONE
        if asked_to_stop(self.out):
            return Reason.REQUEST
        late = self.minutes and time.monotonic() - self.began > 60 * self.minutes
        return Reason.TIME if late else Reason.NONE


@contextmanager
def may_stop(out: Path, minutes: float) -> Iterator[Stopping]:
    """Signals ask the run in this block to stop, instead of ending the process."""
    with stop_signals.polled():
        yield Stopping(out, minutes)
