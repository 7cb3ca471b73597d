"""A stage: a typed config whose `run` turns input artifacts into one output artifact.

To write one, subclass `Stage` as a dataclass, give it a `kind`, and implement `run`. Its fields are its config: the
command line can override them, the receipt records them, and the fingerprint hashes them. Fields that cannot change the
output in exact arithmetic (such as how often to log, or how many processes share the work) are declared with
`tuning(default)` and are not hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import flat, to_mapping


def tuning(default: Any = MISSING, *, default_factory: Callable[[], Any] | None = None) -> Any:
    """A config field that cannot change a stage's output in exact arithmetic, so that its fingerprint leaves it out.

    Args:
        default: the field's default, or
        default_factory: makes the default, for a nested config.
    """
    metadata = {"fingerprint": False}
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Stage(ABC):
    """Base of all stages.

    Class attributes:
        kind: the kind of the artifact; its folder name starts with it.
        version: the author raises it when the same config starts to give a different output.
        stoppable: `run` asks whether it must stop (training/stopping.py), saves its state and raises `Requeue`.
        resumable: `run` continues from what an interrupted run left in `out`; otherwise `out` is emptied first.
    """

    kind: ClassVar[str] = ""
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False
    stoppable: ClassVar[bool] = False

    @property
    def world_size(self) -> int:
        """How many processes `run` needs: one runs in this process, more are launched with torchrun."""
        return 1

    @abstractmethod
    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        """Write the outputs under `out` and return the metrics for the receipt (JSON-ready; rank 0's are kept)."""

    def identity(self) -> dict[str, Any]:
        """The part of the config that decides the output: every field not declared with `tuning`, at any depth.

        A nested config with a method `identity` is replaced by what that returns, and left out if that is None.
        """
        return _without_tuning(self, to_mapping(self))

    def remarks(self) -> list[str]:
        """What `--dry-run` says about this config, a line each, for a reader."""
        return []

    def lineage(self, inputs: Mapping[str, str]) -> str | None:
        """A fingerprint without the length of the run, for a stage that can continue a shorter run; otherwise None.

        Runs with the same lineage do the same work as long as the shorter one lasts.
        """
        return None

    def progress(self, folder: Path) -> int:
        """The number of steps whose state this stage can continue from in another run's folder; 0 for none."""
        return 0

    def why_not_continued(self, folder: Path) -> str:
        """What another run's folder lacks, so that this stage cannot continue it, for a reader; empty if nothing."""
        return ""

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """sha256 over kind, version, `identity` and the inputs' fingerprints."""
        return self.hash_of(self.identity(), inputs)

    def hash_of(self, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """sha256 over kind, version, the given config and the inputs' fingerprints."""
        content = {
            "kind": self.kind,
            "version": self.version,
            "config": identity,
            "inputs": dict(sorted(inputs.items())),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def decisive_fields(stage: Stage) -> dict[str, Any]:
    """The fields that are not tuning, by dotted key, as they stand in the config."""
    return flat(_without_tuning(stage, to_mapping(stage)))


def tuning_fields(stage: Stage) -> dict[str, Any]:
    """The fields declared with `tuning`, at any depth, by dotted key."""
    decisive = decisive_fields(stage)
    return {key: value for key, value in flat(to_mapping(stage)).items() if key not in decisive}


def _without_tuning(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, which are the dataclass `config` as plain data, without the fields declared with `tuning`."""
    kept = {}
    for each in dataclasses.fields(config):
        if not each.metadata.get("fingerprint", True):
            continue
        value = getattr(config, each.name)
        kept[each.name] = values[each.name]
        if hasattr(value, "identity"):
            if (identity := value.identity()) is None:
                del kept[each.name]
            else:
                kept[each.name] = identity
        elif dataclasses.is_dataclass(value):
            kept[each.name] = _without_tuning(value, values[each.name])
    return kept
