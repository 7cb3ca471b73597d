"""One run of one stage: the folder it writes into, and the receipt that completes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError, PrismError
from megatron_prism.pipeline.artifact import Artifact, Receipt, partial_path, seal
from megatron_prism.pipeline.artifact_lock import artifact_lock
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.pipeline.continuation import shorter_run, take_over
from megatron_prism.pipeline.output_folder import is_full_disk
from megatron_prism.pipeline.run_record import RunRecord, read_run_record
from megatron_prism.pipeline.stage import Stage, tuning_fields
from megatron_prism.pipeline.stop_file import forget
from megatron_prism.platform.console import get_logger
from megatron_prism.platform.hardware import machine_facts, versions

log = get_logger(__name__)


class StageRun:
    """One run of a stage: it writes into the folder `partial`, which `seal` turns into the artifact.

    Args:
        name: the stage's name in its graph.
        fingerprint: the fingerprint of the stage and its inputs.
        folder: the artifact's final folder; `partial` is next to it.
    """

    def __init__(
        self, name: str, stage: Stage, *, fingerprint: str, folder: Path, inputs: Mapping[str, Artifact]
    ) -> None:
        self.name, self.stage, self.fingerprint = name, stage, fingerprint
        self.folder, self.partial, self.inputs = folder, partial_path(folder), dict(inputs)
        if self.partial.exists() and not stage.resumable:
            shutil.rmtree(self.partial)
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        self.record = self._begin()

    def _begin(self) -> RunRecord:
        """Make the partial folder, or take over that of a shorter run, and record this attempt in it."""
        stage = self.stage
        lineage = stage.lineage({name: artifact.fingerprint for name, artifact in self.inputs.items()})
        shorter = None if self.partial.exists() else shorter_run(stage, lineage, self.folder)
        if shorter is not None and shorter.is_partial:
            with artifact_lock(shorter.final):
                take_over(shorter, self.folder)
        self.partial.mkdir(parents=True, exist_ok=True)
        record = read_run_record(self.partial) or RunRecord(stage.kind, stage.version, self.fingerprint)
        record.fingerprint, record.lineage = self.fingerprint, lineage or ""
        if shorter is not None:
            record.continues = shorter.record.fingerprint
            record.continues_from = "" if shorter.is_partial else str(shorter.folder.resolve())
            log.info(
                "stage '%s': goes on from step %d of %s", self.name, shorter.progress, shorter.folder.name
            )
        self._add_attempt(record)
        return record

    def _add_attempt(self, record: RunRecord) -> None:
        record.attempts.append(
            {
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "world_size": self.stage.world_size,
                "tuning": tuning_fields(self.stage),
            }
        )
        forget(self.partial)
        record.save(self.partial)

    def restart(self) -> None:
        """Make the folder ready for another attempt, after this one lost a process."""
        if not self.stage.resumable:
            shutil.rmtree(self.partial)
            self.partial.mkdir()
        self._add_attempt(self.record)

    @property
    def seconds(self) -> float:
        """Seconds since the stage started."""
        return time.perf_counter() - self._clock

    def seal(self, metrics: dict[str, Any]) -> Artifact:
        """Write the receipt and move the folder to its final name."""
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
            version=self.record.version,
            lineage=self.record.lineage,
            continues=self.record.continues,
            attempts=self.record.attempts,
        )
        return seal(self.partial, self.folder, receipt)

    def explain(self, problem: BaseException) -> BaseException:
        """A DataError if `problem` came from a full disk, whatever its type; otherwise `problem` itself."""
        if isinstance(problem, PrismError) or not is_full_disk(problem, self.partial):
            return problem
        return DataError(
            f"stage '{self.name}': the disk of {self.partial} is full; finished stages are kept: "
            "free some space or choose another --run-dir, and run again"
        )
