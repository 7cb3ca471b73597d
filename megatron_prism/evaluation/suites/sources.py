"""Where the rows of a benchmark are: files of the hub, or files of this machine that stand in for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.evaluation.suites.definition import BenchmarkDefinition
from megatron_prism.evaluation.suites.hub import HubError, hub_file
from megatron_prism.evaluation.suites.tables import SUFFIXES, Row, read_rows
from megatron_prism.pipeline.file_hash import hash_file


@dataclass(frozen=True)
class Source:
    """The files of one benchmark on this machine.

    Attributes:
        files: name for people -> path. The name is the path inside the hub's repository, or the local path.
        hub: id of the data set, empty for local files.
        commit: of the data set.
    """

    files: dict[str, Path]
    hub: str = ""
    commit: str = ""

    def rows(self) -> Iterator[tuple[Row, str]]:
        """All rows of all files, with their places."""
        for path in self.files.values():
            yield from read_rows(path)

    def record(self, licence: str) -> dict[str, Any]:
        """What suites.json says about the data; `sha256` is that of the only file, or of the files' hashes in order."""
        hashes = {name: contents_hash(path) for name, path in self.files.items()}
        together = "\n".join(hashes.values())
        several = len(hashes) > 1
        return {
            "hub": self.hub,
            "revision": self.commit,
            "file": ", ".join(hashes),
            "sha256": hashlib.sha256(together.encode()).hexdigest() if several else together,
            "licence": licence,
            **({"files": hashes} if several else {}),
        }


def local_files(definition: BenchmarkDefinition, data: Mapping[str, str]) -> dict[str, Path] | None:
    """The files of this machine that a benchmark is read from; None if they come from the hub.

    Args:
        data: benchmark -> a file of the same columns, or a folder with the files of the hub's repository.

    Raises:
        ConfigError: if a file is missing.
    """
    given = data.get(definition.name)
    if given is None:
        if definition.hub:
            return None
        return {str(path): path for path in map(_existing(definition.where_written), definition.files)}
    path = Path(given)
    if not path.is_dir():
        return {given: _existing(f"data.{definition.name}={given}")(given)}
    found = {}
    for file in definition.files:
        inside = path / file if (path / file).is_file() else path / Path(file).name
        if not inside.is_file():
            raise ConfigError(
                f"data.{definition.name}={given}: {Path(file).name} is not in this folder; put all files of the "
                f"benchmark there: {', '.join(Path(each).name for each in definition.files)}"
            )
        found[str(inside)] = inside
    return found


def open_sources(definitions: Sequence[BenchmarkDefinition], data: Mapping[str, str]) -> dict[str, Source]:
    """The files of benchmarks, downloaded if necessary, by name; generated ones have none.

    Raises:
        ConfigError, DataError: if a file is missing or cannot be had. All benchmarks whose files the hub did not give
            are named, so that a user does not learn of them one by one.
    """
    found: dict[str, Source] = {}
    failed: dict[str, HubError] = {}
    network = True
    for definition in definitions:
        if definition.generated:
            continue
        try:
            found[definition.name] = _open(definition, data, network)
        except HubError as problem:
            failed[definition.name] = problem
            network = network and not problem.unreachable
    if failed:
        first, *others = failed
        more = f"; the same goes for {', '.join(others)}" if others else ""
        raise DataError(f"{failed[first]}{more}")
    return found


def _open(definition: BenchmarkDefinition, data: Mapping[str, str], network: bool) -> Source:
    local = local_files(definition, data)
    if local is not None:
        return Source(local)
    found = {
        file: hub_file(definition.hub, file, definition.revision, benchmark=definition.name, network=network)
        for file in definition.files
    }
    commits = {each.commit for each in found.values()}
    if len(commits) > 1:
        raise DataError(
            f"benchmark '{definition.name}': the files of {definition.hub} are of {len(commits)} commits, because its "
            "branch moved between the downloads; give a commit as revision"
        )
    return Source({file: each.path for file, each in found.items()}, definition.hub, commits.pop())


def contents_hash(path: Path) -> str:
    """The sha256 of a file, computed once per process as long as the file stays the same: some have gigabytes."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, modified: int) -> str:
    return hash_file(path)


def _existing(where: str) -> Any:
    def check(name: str) -> Path:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{where}: no such file: {path}; rows are read from {', '.join(SUFFIXES)}")
        return path

    return check
