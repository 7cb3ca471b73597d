"""The stage that takes problem suites from the user's files, in place of a corpus that has its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import DataError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.file_hash import hash_file
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.placeholder import is_placeholder, resolved
from megatron_prism.pipeline.stage import Stage
from megatron_prism.verification.problems import read_suite, suite_names


@dataclass
class SuiteFiles(Stage):
    """No inputs. Output: `problems/SUITE.jsonl`, the problems of each suite that can be graded.

    Attributes:
        folder: a file `SUITE.jsonl` per suite, with the lines that docs/verification.md describes.
    """

    kind: ClassVar[str] = "suites"

    folder: str

    def __post_init__(self) -> None:
        self.folder = resolved(self.folder)

    def identity(self) -> dict[str, Any]:
        """The contents of the files in place of the folder's path, because a changed suite gives other scores."""
        files = {} if is_placeholder(self.folder) else {name: hash_file(path) for name, path in self._files()}
        return super().identity() | {"folder": files}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        counts: dict[str, int] = {}
        dropped: dict[str, dict[str, str]] = {}
        (out / "problems").mkdir()
        for name, _ in self._files():
            problems, faults = read_suite(Path(self.folder), name)
            with record_writer(out / "problems" / f"{name}.jsonl") as write:
                for problem in problems:
                    write(problem.record())
            counts[name] = len(problems)
            if faults:
                dropped[name] = faults
        return {"problems": counts, "dropped": dropped}

    def _files(self) -> list[tuple[str, Path]]:
        names = suite_names(Path(self.folder))
        if not names:
            raise DataError(
                f"{self.folder}: no suites in this folder; put a file SUITE.jsonl per benchmark there "
                "(docs/verification.md)"
            )
        return [(name, Path(self.folder) / f"{name}.jsonl") for name in names]
