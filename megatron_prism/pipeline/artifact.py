"""An artifact: a folder with a `receipt.json` that records what made it, its inputs and its files.

A folder is written under `NAME.partial` and renamed when its receipt is complete. So a folder under its final name is
either complete or was changed afterwards; `Artifact.open` finds most changes and `verify` all.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.file_hash import hash_file, hash_files
from megatron_prism.pipeline.json_text import read_object

RECEIPT = "receipt.json"
PARTIAL_SUFFIX = ".partial"
# A folder inside `NAME.partial` with what an interrupted stage resumes from. It is no output: `seal` does not list it
# and removes it after the rename, so that until then nothing that a killed run needs has been deleted.
RESUME = "resume"


@dataclass(frozen=True)
class OutputFile:
    """One file of an artifact: path relative to the folder, size in bytes, and hash in hex.

    `chunk_bytes` is 0 if `sha256` is that of the file's bytes, otherwise it is a tree hash (see file_hash.py).
    """

    path: str
    size: int
    sha256: str
    chunk_bytes: int = 0


@dataclass
class Receipt:
    """How an artifact was made: everything a report or an audit needs, without reading the outputs.

    Attributes:
        config: of the last attempt; the earlier ones may have had other tuning fields.
        version: of the stage; 0 in receipts of releases that did not record it.
        lineage: see `Stage.lineage`.
        continues: fingerprint of the shorter run whose state this one began from, if there was one.
        attempts: start time, number of processes and tuning fields (with the layout) of each start of the stage.
    """

    kind: str
    fingerprint: str
    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[OutputFile] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1
    started: str = ""
    wall_seconds: float = 0.0
    version: int = 0
    lineage: str = ""
    continues: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk. Make one with `Artifact.open`, which checks it."""

    path: Path
    receipt: Receipt

    @property
    def fingerprint(self) -> str:
        return self.receipt.fingerprint

    @property
    def kind(self) -> str:
        return self.receipt.kind

    @property
    def metrics(self) -> dict[str, Any]:
        return self.receipt.metrics

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> Artifact:
        """Read and check a folder: the receipt is readable, and every output exists with the recorded size.

        Raises:
            ArtifactError: names the folder, what is wrong with it, and the remedy.
        """
        path = Path(path)
        if not path.is_dir():
            raise ArtifactError(f"{path}: no such artifact folder")
        remedy = "delete the folder, or run again with --force"
        if not (path / RECEIPT).exists():
            raise ArtifactError(f"{path}: the folder has no {RECEIPT}, so it is incomplete; {remedy}")
        try:
            raw = read_object(path / RECEIPT, ArtifactError, keep_half_pairs=True)
        except ArtifactError as problem:
            raise ArtifactError(f"{problem}; {remedy}") from None
        try:
            receipt = _receipt(raw)
        except (KeyError, TypeError) as problem:
            raise ArtifactError(f"{path / RECEIPT}: not a valid receipt ({problem}); {remedy}") from None
        for output in receipt.outputs:
            file = path / output.path
            if not file.is_file():
                raise ArtifactError(f"{file}: the file is listed in {RECEIPT} but does not exist; {remedy}")
            if file.stat().st_size != output.size:
                raise ArtifactError(
                    f"{file}: the file has {file.stat().st_size} bytes, but {RECEIPT} records {output.size}; {remedy}"
                )
        if kind is not None and receipt.kind != kind:
            raise ArtifactError(
                f"{path}: this is an artifact of kind '{receipt.kind}', but kind '{kind}' is needed"
            )
        return cls(path, receipt)

    def file(self, relative: str) -> Path:
        """Absolute path of one output; an `ArtifactError` if it does not exist."""
        path = self.path / relative
        if not path.exists():
            raise ArtifactError(
                f"{path}: a '{self.kind}' artifact must have this file; make the artifact again with --force"
            )
        return path

    def verify(self) -> None:
        """Hash every output and compare with the receipt (slow; `open` checks sizes only)."""
        for output in self.receipt.outputs:
            if hash_file(self.path / output.path, output.chunk_bytes) != output.sha256:
                raise ArtifactError(
                    f"{self.path / output.path}: the contents do not match the hash in {RECEIPT}; "
                    "make the artifact again with --force"
                )


def _receipt(raw: dict[str, Any]) -> Receipt:
    """The receipt in a JSON object; a KeyError or TypeError names a missing key or a value of a wrong type."""
    raw["outputs"] = [OutputFile(**item) for item in raw["outputs"]]
    receipt = Receipt(**raw)
    texts = [(key, getattr(receipt, key)) for key in ("kind", "fingerprint", "stage")]
    texts += [("outputs.path", output.path) for output in receipt.outputs]
    for key, value in texts:
        if not isinstance(value, str):
            raise TypeError(f"{key} must be text, found {type(value).__name__}")
    for key in ("config", "inputs", "metrics", "versions", "machine"):
        if not isinstance(getattr(receipt, key), dict):
            raise TypeError(f"{key} must be an object, found {type(getattr(receipt, key)).__name__}")
    return receipt


def folder_stamp(folder: Path) -> list[list[Any]]:
    """Name, size and modification time of every file directly in a folder: cheap, and different when a file changed."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def partial_path(final: Path) -> Path:
    """The folder an artifact is written to until it is complete."""
    return final.with_name(final.name + PARTIAL_SUFFIX)


def seal(partial: Path, final: Path, receipt: Receipt) -> Artifact:
    """Record the outputs of `partial` in its receipt and move it to `final` in one rename.

    An older folder at `final` is replaced only when the new one is complete. The folder `RESUME` is not an output; it
    is removed at the end.
    """
    paths = [
        path
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != RECEIPT and path.relative_to(partial).parts[0] != RESUME
    ]
    receipt.outputs = [
        OutputFile(str(path.relative_to(partial)), found.size, found.sha256, found.chunk_bytes)
        for path, found in zip(paths, hash_files(paths), strict=True)
    ]
    write_json(partial / RECEIPT, asdict(receipt))
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(partial, final)
        shutil.rmtree(old)
    else:
        os.rename(partial, final)
    remove_resume(final)
    return Artifact.open(final)


def remove_resume(final: Path) -> None:
    """Remove the folder `RESUME` of a sealed artifact, which a run that was killed right after the rename leaves."""
    shutil.rmtree(final / RESUME, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees either the old file or the new one, never a part of it."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")
    os.replace(temporary, path)
