"""Keeps what a piece has measured: after each measurement the file is complete, whatever happens to the next one."""

from __future__ import annotations

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_prism.platform.hardware import device, device_name, has_gpu, versions


class Recorder:
    """The results of one piece, in `piece_N.json`.

    Args:
        seconds: the time of the piece; measurements that begin after it are left out.
    """

    def __init__(self, out: Path, piece: int, seconds: float) -> None:
        self.file, self.end = out / f"piece_{piece}.json", time.monotonic() + seconds
        self.results: dict[str, Any] = {}
        self.header = {"piece": piece, "device": device_name(), "gpu": has_gpu(), "versions": versions()}
        self.header["versions"] |= {"cuda": torch.version.cuda or "none"}

    def measure(self, name: str, function: Callable[[], Any], limit: float = 120.0) -> Any:
        """Call a measurement and keep what it returns. An exception or its time limit is kept in its place.

        Args:
            limit: seconds; also the time that must be left for the measurement to begin at all.

        Returns:
            what the measurement returned; None if it failed or was left out.
        """
        if time.monotonic() + 0.5 * limit > self.end:
            return self._keep(name, {"left_out": f"fewer than {0.5 * limit:.0f} s were left"})
        began = time.monotonic()
        try:
            with _time_limit(min(limit, self.end - began + 5)):
                found = function()
        except Exception as problem:
            self._keep(name, {"failed": _last_line(problem), "seconds": round(time.monotonic() - began, 1)})
            traceback.print_exc()
            return None
        finally:
            _release_memory()
        self._keep(name, {"result": found, "seconds": round(time.monotonic() - began, 1)})
        return found

    def _keep(self, name: str, entry: dict[str, Any]) -> None:
        self.results[name] = entry
        print(f"{name}: {json.dumps(entry)}"[:300], flush=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.header | {"results": self.results}, indent=1) + "\n")
        partial.rename(self.file)


def _last_line(problem: BaseException) -> str:
    return traceback.format_exception_only(problem)[-1].strip()[:400]


def _release_memory() -> None:
    """Give back the memory of a failed or finished measurement, so that the next one starts with an empty device."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread after that time. A running kernel is finished first."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def synchronize() -> None:
    """Wait for the device."""
    if has_gpu():
        torch.cuda.synchronize(device())


def seconds_of(function: Callable[[], Any], repeats: int, warmup: int = 1) -> float:
    """Median seconds of a call, with the device's work included."""
    for _ in range(warmup):
        function()
    found = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        found.append(time.perf_counter() - began)
    return sorted(found)[len(found) // 2]
