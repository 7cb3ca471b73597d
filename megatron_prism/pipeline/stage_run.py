"""One run of one stage: the lock on its artifact, the folder it writes into, and the receipt that completes it."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError, DataError, PrismError
from megatron_prism.pipeline.artifact import Artifact, Receipt, partial_path, seal
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.pipeline.output_folder import is_full_disk
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.hardware import machine_facts, versions


class StageRun:
    """One stage's run into its half-written folder, from the lock to the seal.

    Args:
        name: of the stage in its graph.
        fingerprint: of the stage with its inputs.
        folder: the artifact's final folder; `partial` beside it is where the stage writes.
    """

    def __init__(
        self, name: str, stage: Stage, fingerprint: str, folder: Path, inputs: Mapping[str, Artifact]
    ) -> None:
        self.name, self.stage, self.fingerprint = name, stage, fingerprint
        self.folder, self.partial, self.inputs = folder, partial_path(folder), dict(inputs)
        if self.partial.exists() and not stage.resumable:
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        self._started, self._clock = datetime.now(UTC), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the stage was started."""
        return time.perf_counter() - self._clock

    def seal(self, metrics: dict[str, Any]) -> Artifact:
        """Complete the artifact with its receipt, under its final name."""
        receipt = Receipt(
            kind=self.stage.kind,
            fingerprint=self.fingerprint,
            stage=self.name,
            config=to_mapping(self.stage),
            inputs={name: artifact.fingerprint for name, artifact in self.inputs.items()},
            metrics=metrics,
            versions=versions(),
            machine=machine_facts(),
            world_size=self.stage.world_size,
            started=self._started.isoformat(timespec="seconds"),
            wall_seconds=round(self.seconds, 3),
        )
        return seal(self.partial, self.folder, receipt)

    def explain(self, problem: BaseException) -> BaseException:
        """A DataError in place of whatever a library raised because the disk is full; otherwise `problem` itself."""
        if isinstance(problem, PrismError) or not is_full_disk(problem, self.partial):
            return problem
        return DataError(
            f"stage '{self.name}': the disk that holds {self.partial} is full; nothing finished was lost: "
            "free some space (or choose another --run-dir) and run again"
        )


@contextmanager
def artifact_lock(folder: Path) -> Iterator[None]:
    """Hold the right to make `folder`; a second process is told so instead of writing into the same place."""
    lock = folder.with_name(f".{folder.name}.lock")
    with open(lock, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{folder}: another process is making this artifact; wait for it or stop it"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
