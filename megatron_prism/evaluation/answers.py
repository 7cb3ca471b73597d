"""Reads the answers that an evaluation kept, with their verdicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ArtifactError, suggest
from megatron_prism.evaluation.generations import FOLDER
from megatron_prism.evaluation.scored_model import find_folders

if TYPE_CHECKING:
    import pyarrow

# Answers are long: so many are in memory at a time.
ROWS_AT_ONCE = 256
# What a person reads of an answer.
SHOWN = (
    *("id", "sample", "prompt", "completion", "kind", "answer", "extracted", "correct", "reason"),
    *("finish_reason", "tokens"),
)


def find_answers(name: str) -> Path:
    """The evaluation that a user names: its folder, a run folder that has one, or RUN:MODEL.

    Raises:
        ArtifactError: if there are none, or several.
    """

    def has_answers(folder: Path) -> bool:
        return os.path.isdir(folder / FOLDER) and any((folder / FOLDER).glob("*.parquet"))

    if has_answers(Path(name)):
        return Path(name)
    found = list(filter(has_answers, find_folders(name)))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArtifactError(f"{name}: keeps no answers of models; give the folder of an evaluation that does")
    named = ", ".join(map(str, found))
    raise ArtifactError(f"{name}: has {len(found)} evaluations with answers; name one of {named}")


def answered_suites(folder: Path) -> list[str]:
    """The suites whose answers an evaluation artifact holds.

    Raises:
        ArtifactError: if it holds none.
    """
    names = sorted(path.stem for path in (folder / FOLDER).glob("*.parquet"))
    if not names:
        raise ArtifactError(
            f"{folder / FOLDER}: no answers; give the folder of an evaluation that is complete"
        )
    return names


def read_answers(
    folder: Path, suite: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The answers of one suite or of all, as records with `suite` and the columns of the Parquet files.

    Raises:
        ArtifactError: naming a file that is missing or cannot be read.
    """
    for name, batch in answer_batches(folder, suite, columns):
        for record in batch.to_pylist():
            yield {"suite": name, **record}


def answer_batches(
    folder: Path, suite: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pyarrow.RecordBatch]]:
    """Suites and some of their answers, as columns: a hundred times faster than records for what has a value per token.

    Raises as `read_answers`.
    """
    import pyarrow
    from pyarrow import parquet

    names = answered_suites(folder)
    if suite is not None and suite not in names:
        raise ArtifactError(f"{folder}: has no answers of suite '{suite}'{suggest(suite, names)}")
    for name in names if suite is None else [suite]:
        file = folder / FOLDER / f"{name}.parquet"
        try:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS_AT_ONCE, columns=columns):
                    yield name, batch
        except (OSError, pyarrow.ArrowInvalid, pyarrow.ArrowKeyError) as problem:
            raise ArtifactError(
                f"{file}: not the answers of an evaluation ({problem}); evaluate again"
            ) from None
