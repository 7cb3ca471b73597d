"""Kept generations: every completion of an evaluation with its tokens and log-probabilities, in Parquet.

While an evaluation samples, finished completions are written every few seconds as a new file
`generations/SUITE/CHUNK-REPLICA-NUMBER.parquet` (a part), which appears whole or not at all. A killed run therefore
loses seconds of work. Grading turns the parts of a suite into `generations/SUITE.parquet`, in the order of problems and
samples, with the verdicts.

A completion follows from the model, its tokenizer, the engine, the sampling parameters, the prompt and its number.
`generations.json` records the first four, so that another evaluation of the same run can take over what it needs: after
samples were added, or the grader has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ArtifactError
from megatron_prism.generation.engine import Completion
from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX, write_json
from megatron_prism.platform.console import get_logger

if TYPE_CHECKING:
    import pyarrow

    from megatron_prism.evaluation.plan import SuitePlan
    from megatron_prism.verification.problems import Problem

FOLDER, IDENTITY = "generations", "generations.json"
# The finish reason of a sample that the engine could not make, because of its prompt. It has no text and no tokens.
REFUSED = "refused"
# At most so many completions of a suite are sampled by one call and graded together, because all are in memory; and of
# long ones, as many as may have so many tokens: as Python's numbers, a token and its log-probability take 100 bytes.
COMPLETIONS_AT_ONCE, TOKENS_AT_ONCE = 4096, 2**25
# A part is written when it has so many completions, or is so old.
PART_COMPLETIONS, PART_SECONDS = 512, 20.0

log = get_logger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Consecutive problems of a suite whose completions are sampled by one call."""

    number: int
    problems: list[Problem]
    seeds: list[int]


def chunks_of(plan: SuitePlan) -> Iterator[Chunk]:
    """The problems of a suite in chunks of as many completions as may be in memory, or one problem."""
    completions = min(COMPLETIONS_AT_ONCE, TOKENS_AT_ONCE // plan.params.max_new_tokens)
    size = max(1, completions // plan.samples)
    for number, start in enumerate(range(0, len(plan.problems), size)):
        part = slice(start, start + size)
        yield Chunk(number, plan.problems[part], plan.seeds[part])


def part_schema() -> pyarrow.Schema:
    """The columns of a part; `generations/SUITE.parquet` has more (evaluation/grading.py)."""
    import pyarrow

    return pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("sample", pyarrow.int32()),
            ("prompt", pyarrow.string()),
            ("prompt_ids", pyarrow.list_(pyarrow.int32())),
            ("completion", pyarrow.string()),
            ("token_ids", pyarrow.list_(pyarrow.int32())),
            ("logprobs", pyarrow.list_(pyarrow.float32())),
            ("finish_reason", pyarrow.string()),
            ("seconds", pyarrow.float32()),
        ]
    )


@dataclass
class PartWriter:
    """Writes finished completions of one chunk as parts; use it as a context manager, which writes the rest.

    `replica` is the number of the model replica that made them: replicas write at the same time. `written` are the
    parts so far.
    """

    folder: Path
    chunk: int
    replica: int = 0
    written: list[Path] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def add(self, problem: Problem, number: int, prompt_ids: Sequence[int], completion: Completion) -> None:
        """Keep one completion; half a surrogate pair in its text becomes the replacement character."""
        self._add(problem, number, prompt_ids, vars(completion))

    def add_refused(self, problem: Problem, number: int, prompt_ids: Sequence[int]) -> None:
        """Keep that a sample could not be made."""
        nothing = vars(Completion("", [], [], "stop"))
        self._add(problem, number, prompt_ids, nothing | {"finish_reason": REFUSED})

    def _add(self, problem: Problem, number: int, prompt_ids: Sequence[int], made: dict[str, Any]) -> None:
        self._rows.append(
            {
                "id": problem.id,
                "sample": number,
                "prompt": whole_text(problem.prompt),
                "prompt_ids": prompt_ids,
                **{key: value for key, value in made.items() if key != "text"},
                "completion": whole_text(made["text"]),
            }
        )
        if len(self._rows) >= PART_COMPLETIONS or time.monotonic() - self._last > PART_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what has been added since the last part."""
        self._last = time.monotonic()
        if self._rows:
            import pyarrow

            table = pyarrow.Table.from_pylist(self._rows, part_schema())
            self.written.append(write_part(self.folder, self.chunk, table, self.replica))
            self._rows = []


def write_part(folder: Path, chunk: int, table: pyarrow.Table, replica: int = 0) -> Path:
    """Write a part under a name that no other part of the chunk has; returns its path."""
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{chunk:05d}-{replica:03d}-"
    # Not their count: one that could not be read was removed.
    used = [int(path.stem.removeprefix(prefix)) for path in folder.glob(f"{prefix}*.parquet")]
    final = folder / f"{prefix}{max(used, default=-1) + 1:05d}.parquet"
    partial = final.with_name(f"{final.name}{PARTIAL_SUFFIX}")
    parquet.write_table(table, partial, compression="zstd")
    os.replace(partial, final)
    return final


def read_chunk(folder: Path, chunk: int, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """The samples in the parts of a chunk; one that was refused and made later is there twice.

    Raises:
        ArtifactError: naming a part that cannot be read.
    """
    import pyarrow

    schema = part_schema()
    names = schema.names if columns is None else list(columns)
    parts = [_read(path, names) for path in sorted(folder.glob(f"{chunk:05d}-*.parquet")) if _is_whole(path)]
    if not parts:
        return pyarrow.schema([schema.field(name) for name in names]).empty_table()
    return pyarrow.concat_tables(parts)


def _is_whole(path: Path) -> bool:
    """Whether a part can be read; one that cannot (a machine lost its power) is removed, to be sampled again."""
    import pyarrow
    from pyarrow import parquet

    try:
        parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowInvalid) as problem:
        log.warning("%s: cannot be read (%s); its completions are sampled again", path, problem)
        path.unlink()
        return False
    return True


def _row_groups(path: Path) -> int:
    """The number of row groups of a file; a complete suite has one for each of its chunks."""
    from pyarrow import parquet

    with _readable(path):
        return int(parquet.read_metadata(path).num_row_groups)


def _read(path: Path, columns: Sequence[str], group: int | None = None) -> pyarrow.Table:
    """Columns of a file, or of one of its row groups: a whole suite of long answers does not fit into memory."""
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path) as file:
        names = list(columns)
        return file.read(names) if group is None else file.read_row_group(group, names)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowInvalid, KeyError) as problem:
        raise ArtifactError(
            f"{path}: not the generations of an evaluation ({problem}); remove the file, and evaluate again"
        ) from None


def sampled_keys(folder: Path, chunk: int, *, refused: bool) -> set[tuple[str, int]]:
    """(problem, number) of every sample in the parts of a chunk; if `refused`, also of those that could not be made."""
    table = read_chunk(folder, chunk, ["id", "sample", "finish_reason"])
    columns = (table[name].to_pylist() for name in table.column_names)
    return {
        (problem, number)
        for problem, number, reason in zip(*columns, strict=True)
        if refused or reason != REFUSED
    }


class Earlier:
    """Generations of other evaluations in the same folder of artifacts, which this one may take over.

    Args:
        out: the folder that this evaluation writes into; an older form of its final folder counts as another.
        identity: model, tokenizer and engine of this evaluation.
        among: the other evaluations; None: the artifacts next to `out` of the same kind.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], among: Iterable[Path] | None = None) -> None:
        self.folders: list[tuple[Path, dict[str, Any]]] = []
        kind = out.name.split("-")[0]
        for folder in sorted(out.parent.glob(f"{kind}-*") if among is None else among):
            recorded = None if folder == out else read_identity(folder)
            if recorded is not None and recorded["from"] == identity:
                self.folders.append((folder, recorded["suites"]))

    def completions(self, plan: SuitePlan, wanted: Mapping[str, Sequence[int]]) -> Iterator[pyarrow.Table]:
        """Tables of the wanted completions (problem -> numbers), each of them once. What was refused is not among them.

        Only problems with the same prompt and suites with the same sampling parameters count.
        """
        from pyarrow import compute

        prompts = {problem.id: whole_text(problem.prompt) for problem in plan.problems}
        missing = {(problem, number) for problem, numbers in wanted.items() for number in numbers}
        for folder, suites in self.folders:
            if not missing or suites.get(plan.name) != sampling_identity(plan):
                continue
            for file in generation_files(folder, plan.name):
                for group in range(_row_groups(file)):
                    keys = _read(file, ["id", "sample", "prompt", "finish_reason"], group).to_pylist()
                    rows = []
                    for row, key in enumerate(keys):
                        place = (key["id"], key["sample"])
                        usable = key["finish_reason"] != REFUSED
                        if usable and place in missing and prompts[key["id"]] == key["prompt"]:
                            missing.discard(place)
                            rows.append(row)
                    if rows:
                        table = _read(file, part_schema().names, group)
                        yield compute.take(table, rows).cast(part_schema())


def generation_files(folder: Path, suite: str) -> list[Path]:
    """The files with completions of a suite: its one file if the evaluation is complete, otherwise its parts."""
    whole = folder / FOLDER / f"{suite}.parquet"
    return [whole] if whole.is_file() else sorted((folder / FOLDER / suite).glob("*.parquet"))


def remove_parts(out: Path) -> None:
    """Remove the parts of all suites, when their completions have been written with their verdicts."""
    for folder in (out / FOLDER).iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)


def sampling_identity(plan: SuitePlan) -> dict[str, Any]:
    """What decides a suite's completions besides its prompts and the model."""
    return asdict(plan.params)


def write_identity(out: Path, identity: Mapping[str, Any], plans: Sequence[SuitePlan]) -> None:
    """Write `generations.json`."""
    suites = {plan.name: sampling_identity(plan) for plan in plans}
    write_json(out / IDENTITY, {"from": identity, "suites": suites})


def read_identity(folder: Path) -> dict[str, Any] | None:
    """The contents of `generations.json`; None if there is none, or a damaged one."""
    try:
        recorded = json.loads((folder / IDENTITY).read_text())
        return recorded if {"from", "suites"} <= set(recorded) else None
    except (OSError, ValueError, TypeError):
        return None


def whole_text(text: str) -> str:
    """The text with the replacement character for half a surrogate pair, which Parquet cannot hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
