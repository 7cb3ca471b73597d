"""Finished completions on disk, one JSON line each, so that a call that was stopped asks only for what is missing.

A line that a crash cut short is not JSON: it is passed over, and that completion is asked for again.
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
    """A hash of all that was asked: model, prompt, sampling parameters and the sample's own seed."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class CompletionStore:
    """`completions.jsonl` in a folder, which is made if need be. Threads and processes may add to it at once.

    Raises:
        ConfigError: if the folder cannot be made or written.
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
        """The kept completions among `keys`.

        Raises:
            DataError: for a line that is JSON but not a kept completion.
        """
        wanted, found = set(keys), {}
        with self.file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    kept = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                try:
                    if kept["key"] in wanted:
                        found[kept["key"]] = Completion(**kept["completion"])
                except (KeyError, TypeError):
                    raise DataError(
                        f"{self.file}:{number}: not a kept completion; give store a folder of its own"
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
