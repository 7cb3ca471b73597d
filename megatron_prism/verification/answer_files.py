"""Files of answers to grade: JSON lines of completions, or the Parquet file of a suite that an evaluation keeps.

A record needs `completion`; `kind`, `answer`, `tests` and `benchmark` may stand in the record, or in a problem of the
same `id`. Keys that are not needed are ignored, so answers kept years ago can be graded again without sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.pipeline.json_text import read_records
from megatron_prism.verification.benchmarks import BENCHMARKS
from megatron_prism.verification.grade import KINDS, Grade, GradeItem
from megatron_prism.verification.problems import Problem, load_suite
from megatron_prism.verification.sandbox.code_tests import parse_tests

# Rows of a Parquet file in memory at a time, and the columns that are read.
ROWS_AT_ONCE = 1024
_COLUMNS = ("id", "sample", "completion", "kind", "answer", "tests", "benchmark", "correct")
# A string is text, anything else is as written.
_TEXTS = ("completion", "kind", "answer", "benchmark")


@dataclass(frozen=True)
class KeptAnswer:
    """One record of a file of answers.

    Attributes:
        id: the record's `id`, else its line number as text.
        sample: the number of the answer among those to the same problem, if the record states it.
        before: the verdict that the record already has, if any.
    """

    id: str
    sample: int | None
    item: GradeItem
    before: bool | None

    def verdict(self, grade: Grade) -> dict[str, Any]:
        """The line that `prism grade` writes for this answer."""
        line: dict[str, Any] = {"id": self.id}
        if self.sample is not None:
            line["sample"] = self.sample
        line |= {"kind": self.item.kind, "correct": grade.correct, "reason": grade.reason}
        line["extracted"] = grade.extracted
        if self.item.kind == "code":
            line["test_verdicts"] = grade.tests
        if self.item.benchmark:
            line |= {"benchmark": self.item.benchmark, "published": grade.published}
        if self.before is not None:
            line["before"] = self.before
        return line


def load_problems(paths: Sequence[Path]) -> dict[str, Problem]:
    """The problems of suite files, or of all suites in folders, by id.

    Raises:
        DataError: if one is missing or malformed, or an id stands in two files with different problems.
    """
    found: dict[str, Problem] = {}
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: no problem suites (SUITE.jsonl) in this folder")
        for file in files:
            if file.suffix != ".jsonl":
                raise DataError(f"{file}: a problem suite is a file of JSON lines named SUITE.jsonl")
            for problem in load_suite(file.parent, file.stem):
                if found.setdefault(problem.id, problem) != problem:
                    raise DataError(
                        f"{file}: id '{problem.id}' names another problem in another suite; grade them apart"
                    )
    return found


def read_answers(
    path: Path, problems: Mapping[str, Problem] | None = None, kind: str | None = None
) -> Iterator[KeptAnswer]:
    """The records of a file of answers (.jsonl, also .gz or .zst; .parquet), one at a time.

    Args:
        problems: by id; a record's own `kind`, `answer` and `tests` are then not used.
        kind: for records that state none.

    Raises:
        DataError: with file, line and key.
    """
    records = (
        _parquet_records(path) if path.suffix == ".parquet" else read_records(path, keep_half_pairs=True)
    )
    for number, (record, where) in enumerate(records, 1):
        for key in _TEXTS:
            if not isinstance(record.get(key, ""), str):
                raise DataError(f"{where}: '{key}' must be text, found {type(record[key]).__name__}")
        if "completion" not in record:
            raise DataError(f"{where}: key 'completion' is missing{suggest('completion', record)}")
        before = record.get("correct")
        sample = record.get("sample")
        yield KeptAnswer(
            str(record.get("id", number)),
            sample if isinstance(sample, int) else None,
            _item(record, where, problems, kind),
            before if isinstance(before, bool) else None,
        )


def _parquet_records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a Parquet file without their empty cells, each with FILE, row N for error messages."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            row = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield {k: v for k, v in record.items() if v is not None}, f"{path}, row {row}"
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, pyarrow.ArrowInvalid) as problem:
        raise DataError(f"{path}: not a Parquet file that can be read ({problem})") from None


def _item(
    record: Mapping[str, Any], where: str, problems: Mapping[str, Problem] | None, kind: str | None
) -> GradeItem:
    completion = record["completion"]
    if problems is not None:
        problem = problems.get(str(record.get("id")))
        if problem is None:
            raise DataError(f"{where}: id '{record.get('id')}' is not among the problems")
        return GradeItem(problem.kind, completion, problem.answer, problem.tests, problem.benchmark)
    stated = record.get("kind", kind)
    if stated is None:
        raise DataError(
            f"{where}: key 'kind' is missing; write it into the record, or give --kind or --problems"
        )
    if stated not in KINDS:
        raise DataError(f"{where}: kind '{stated}' cannot be graded{suggest(stated, KINDS)}")
    benchmark = record.get("benchmark", "")
    if benchmark and benchmark not in BENCHMARKS:
        raise DataError(f"{where}: benchmark '{benchmark}' has no rules{suggest(benchmark, BENCHMARKS)}")
    if stated == "code":
        if "tests" not in record:
            raise DataError(
                f"{where}: key 'tests' is missing; write them into the record, or give --problems"
            )
        parse_tests(record["tests"], f"{where}: 'tests'")
        return GradeItem(stated, completion, "", record["tests"], benchmark)
    if "answer" not in record:
        raise DataError(f"{where}: key 'answer' is missing; write it into the record, or give --problems")
    return GradeItem(stated, completion, record["answer"], [], benchmark)
