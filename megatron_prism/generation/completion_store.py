"""Finished completions on disk, one JSON line each. A call that was interrupted requests only the missing ones.

A line that a crash cut short is not valid JSON. It is skipped, and its completion is requested again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.generation.engine import Completion


def request_key(body: dict[str, Any]) -> str:
    """A hash of the whole request: model, prompt, sampling parameters and the sample's seed."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class CompletionStore:
    """The file `completions.jsonl` in a folder, which is created if necessary. Threads and processes may add
    concurrently.

    Raises:
        ConfigError: if the folder cannot be created or written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = Path(folder) / "completions.jsonl"
        self._lock = Lock()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
        except OSError as problem:
            raise ConfigError(f"store={folder}: cannot be written ({problem.strerror})") from None

    def read(self, keys: Iterable[str]) -> dict[str, Completion]:
        """The stored completions among `keys`.

        Raises:
            DataError: for a line that is JSON but not a stored completion.
        """
        wanted, found = set(keys), {}
        with self.file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                try:
                    if record["key"] in wanted:
                        found[record["key"]] = Completion(**record["completion"])
                except (KeyError, TypeError):
                    raise DataError(
                        f"{self.file}:{number}: not a stored completion; use a separate folder for the store"
                    ) from None
        return found

    def add(self, key: str, completion: Completion) -> None:
        """Append one line, in a single write."""
        line = json.dumps({"key": key, "completion": dataclasses.asdict(completion)}) + "\n"
        with self._lock, self.file.open("r+b") as whole:
            size = whole.seek(0, os.SEEK_END)
            whole.seek(max(size - 1, 0))
            cut_short = size > 0 and whole.read(1) != b"\n"
            with self.file.open("ab", buffering=0) as end:
                end.write(("\n" * cut_short + line).encode())
