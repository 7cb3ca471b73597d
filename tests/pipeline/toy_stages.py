"""Small real stages for the tests of the pipeline and the command line; importable by launched workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ConfigError, DataError, Requeue
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.run_record import read_run_record
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.pipeline.stop_file import asked_to_stop
from megatron_prism.platform import stop_signals


@dataclass
class Inner:
    lr: float = 0.1
    names: list[str] = field(default_factory=lambda: ["a"])
    threads: int = tuning(1)


@dataclass
class Write(Stage):
    """Writes `text`, and appends it to the file $TOY_LOG, so that a test can count the runs."""

    kind: ClassVar[str] = "write"
    text: str = "a"
    repeats: int = 1
    inner: Inner = field(default_factory=Inner)
    log_every: int = tuning(1)

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats}: must be 1 or more")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        if "TOY_LOG" in os.environ:
            with open(os.environ["TOY_LOG"], "a") as log:
                log.write(self.text + "\n")
        (out / "sub").mkdir()
        before = "".join(inputs[key].file("sub/text.txt").read_text() for key in sorted(inputs))
        (out / "sub" / "text.txt").write_text(before + self.text * self.repeats)
        return {"length": len(before) + len(self.text) * self.repeats}


@dataclass
class FailOnce(Write):
    """Fails while the file $TOY_BLOCK exists."""

    kind: ClassVar[str] = "fail"

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        (out / "half").write_text("half")
        if Path(os.environ["TOY_BLOCK"]).exists():
            raise DataError("blocked.jsonl: empty")
        (out / "half").unlink()
        return super().run(inputs, out)


@dataclass
class Resume(Stage):
    """Resumable: continues from the files that an interrupted run left."""

    kind: ClassVar[str] = "resume"
    resumable: ClassVar[bool] = True

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        marker = out / "step"
        if not marker.exists():
            marker.write_text("1")
            raise DataError("interrupted")
        return {"resumed_from": int(marker.read_text())}


@dataclass
class Count(Stage):
    """Counts to `steps`, and fails at `fail_at`; a longer count goes on from a shorter one with the same `text`."""

    kind: ClassVar[str] = "count"
    resumable: ClassVar[bool] = True
    text: str = "a"
    steps: int = 4
    fail_at: int = tuning(0)

    def lineage(self, inputs: Mapping[str, str]) -> str | None:
        return self.hash_of({"text": self.text}, inputs)

    def progress(self, folder: Path) -> int:
        counted = len((folder / "count").read_text()) if (folder / "count").exists() else 0
        return counted if counted <= self.steps else 0

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        record = read_run_record(out)
        assert record is not None
        if record.continues_from and not (out / "count").exists():
            (out / "count").write_bytes((Path(record.continues_from) / "count").read_bytes())
        counted = self.progress(out)
        began = counted
        while counted < self.steps:
            if counted == self.fail_at - 1:
                raise DataError("interrupted")
            counted += 1
            (out / "count").write_text(self.text * counted)
        return {"began": began}


@dataclass
class Patient(Stage):
    """Works until it is asked to stop, saves, and says so; the next attempt ends at once."""

    kind: ClassVar[str] = "patient"
    resumable: ClassVar[bool] = True
    mark: str = ""
    deaf: bool = False
    seconds_to_save: float = 0.0
    processes: int = 1

    @property
    def world_size(self) -> int:
        return self.processes

    @property
    def stoppable(self) -> bool:  # type: ignore[override]
        return not self.deaf

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        if (out / "saved").exists():
            return {"continued": True}
        here = Path(self.mark + os.environ.get("RANK", "0"))
        if self.deaf:
            here.touch()
            time.sleep(60)
        with stop_signals.polled():
            here.touch()
            while not (asked_to_stop(out) or stop_signals.received()):
                time.sleep(0.01)
            here.with_name("saving0").touch()
            time.sleep(self.seconds_to_save)
            (out / "saved").touch()
        raise Requeue("saved")


@dataclass
class Vanish(Stage):
    """One of its processes is killed, `times` times."""

    kind: ClassVar[str] = "vanish"
    resumable: ClassVar[bool] = True
    times: int = 1
    mark: str = ""
    processes: int = 1

    @property
    def world_size(self) -> int:
        return self.processes

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0:
            attempt = int(Path(self.mark).read_text() or 0) + 1 if Path(self.mark).exists() else 1
            Path(self.mark).write_text(str(attempt))
            if attempt <= self.times:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"attempt": attempt}
        while not Path(self.mark).exists() or int(Path(self.mark).read_text() or 0) <= self.times:
            # As a rank that waits in a collective for one that is gone.
            time.sleep(0.01)
        return {}


@dataclass
class Fill(Stage):
    """Writes until the disk is full."""

    kind: ClassVar[str] = "fill"
    megabytes: int = 64

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        with open(out / "big", "wb", buffering=0) as handle:
            for _ in range(self.megabytes):
                written = handle.write(bytes(1 << 20))
                if written < 1 << 20:
                    handle.write(b"more")
        return {}


@dataclass
class Interrupt(Stage):
    """Raises KeyboardInterrupt, as Ctrl-C does in a stage."""

    kind: ClassVar[str] = "interrupt"

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        raise KeyboardInterrupt


@dataclass
class AllReduce(Stage):
    """Two processes sum their ranks plus one with gloo; optionally one of them fails."""

    kind: ClassVar[str] = "allreduce"
    failing_rank: int = -1

    @property
    def world_size(self) -> int:
        return 2

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        import torch
        import torch.distributed as dist

        rank = int(os.environ["RANK"])
        if rank == self.failing_rank:
            raise DataError("shard-7.bin: truncated")
        dist.init_process_group("gloo")
        total = torch.tensor([rank + 1])
        dist.all_reduce(total)
        if rank == 0:
            (out / "total.txt").write_text(str(int(total)))
        dist.destroy_process_group()
        return {"total": int(total), "world": int(os.environ["WORLD_SIZE"])}


@dataclass
class Meet(Stage):
    """Ends when the other stage has started, too; fails if that takes longer than `seconds`."""

    kind: ClassVar[str] = "meet"
    me: str = "left"
    other: str = "right"
    folder: str = ""
    seconds: float = 20.0

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:

        from megatron_prism.platform.console import get_logger

        (Path(self.folder) / self.me).touch()
        get_logger("megatron_prism.toy").info("%s is here", self.me)
        end = time.monotonic() + self.seconds
        while not (Path(self.folder) / self.other).exists():
            if time.monotonic() > end:
                raise DataError(f"{self.other} did not come")
            time.sleep(0.01)
        return {"process": os.getpid()}


@dataclass
class Break(Stage):
    """Fails in the given way: 'bug', 'disk' (full), or 'die' (the process is killed)."""

    kind: ClassVar[str] = "break"
    way: str = "bug"

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        import errno

        if self.way == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.way == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("a mistake in the code")
