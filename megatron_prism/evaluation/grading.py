"""Grades kept generations, and writes them with their verdicts: one Parquet file per suite, in the suite's order.

Nothing is sampled here, so a new version of the grader costs no generation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from megatron_prism.evaluation.generations import (
    FOLDER,
    REFUSED,
    Chunk,
    chunks_of,
    part_schema,
    read_chunk,
)
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.suite import GradedSample, SuiteResult
from megatron_prism.generation.engine import Progress, no_progress
from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX
from megatron_prism.verification.grade import GRADER_VERSION, Grade, GradeItem, grade_all
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.sandbox.isolation import STRONG

if TYPE_CHECKING:
    import pyarrow


def graded_schema() -> pyarrow.Schema:
    """The columns of `generations/SUITE.parquet`."""
    import pyarrow

    schema = part_schema()
    for name, kind in (
        ("prompt_id", pyarrow.string()),
        ("tokens", pyarrow.int32()),
        ("domain", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("benchmark", pyarrow.string()),
        ("extracted", pyarrow.string()),
        ("correct", pyarrow.bool_()),
        ("reason", pyarrow.string()),
        ("test_verdicts", pyarrow.list_(pyarrow.string())),
        ("published", pyarrow.bool_()),
        ("grader", pyarrow.string()),
    ):
        schema = schema.append(pyarrow.field(name, kind))
    return schema


def grade_suite(
    out: Path,
    plan: SuitePlan,
    pool: GradingPool,
    sandbox: str = STRONG,
    *,
    progress: Progress = no_progress,
) -> SuiteResult:
    """Grade the parts of a suite under `out`, and write `generations/SUITE.parquet`.

    Args:
        sandbox: how programs among the completions are isolated, "strong" or "weak".
    """
    from pyarrow import parquet

    final = out / FOLDER / f"{plan.name}.parquet"
    partial = final.with_name(f"{final.name}{PARTIAL_SUFFIX}")
    rows: list[list[GradedSample]] = []
    with parquet.ParquetWriter(partial, graded_schema(), compression="zstd") as writer:
        for chunk in chunks_of(plan):
            table = _in_order(read_chunk(out / FOLDER / plan.name, chunk.number), plan, chunk)
            texts = table["completion"].to_pylist()
            problems = [problem for problem in chunk.problems for _ in range(plan.samples)]
            items = [
                GradeItem(problem.kind, text, problem.answer, problem.tests, problem.benchmark)
                for problem, text in zip(problems, texts, strict=True)
            ]
            refused = [reason == REFUSED for reason in table["finish_reason"].to_pylist()]
            given = [item for item, missing in zip(items, refused, strict=True) if not missing]
            verdicts = iter(grade_all(given, pool, progress, sandbox=sandbox))
            grades = [Grade(False, REFUSED) if missing else next(verdicts) for missing in refused]
            writer.write_table(_with_verdicts(table, problems, grades))
            rows += _samples(table, plan, problems, grades)
    os.replace(partial, final)
    return SuiteResult(plan, rows)


def _in_order(table: pyarrow.Table, plan: SuitePlan, chunk: Chunk) -> pyarrow.Table:
    """The completions of a chunk, each once, by problem and number; those beyond the plan are left out."""
    from pyarrow import compute

    places = {
        (problem.id, number): index * plan.samples + number
        for index, problem in enumerate(chunk.problems)
        for number in range(plan.samples)
    }
    order = numpy.full(len(places), -1)
    columns = (table[name].to_pylist() for name in ("id", "sample", "finish_reason"))
    for row, (problem_id, number, reason) in enumerate(zip(*columns, strict=True)):
        place = places.get((problem_id, number))
        # A sample that was refused may have been made later.
        if place is not None and (order[place] < 0 or reason != REFUSED):
            order[place] = row
    assert (order >= 0).all(), "every completion of the chunk has been sampled"
    return compute.take(table, order)


def _with_verdicts(table: pyarrow.Table, problems: Sequence[Any], grades: Sequence[Grade]) -> pyarrow.Table:
    import pyarrow
    from pyarrow import compute

    added: Mapping[str, list[Any]] = {
        "prompt_id": [prompt_id(ids) for ids in table["prompt_ids"].to_pylist()],
        "tokens": compute.list_value_length(table["token_ids"]).to_pylist(),
        "domain": [problem.domain for problem in problems],
        "kind": [problem.kind for problem in problems],
        "answer": [problem.answer for problem in problems],
        "benchmark": [problem.benchmark for problem in problems],
        "extracted": [grade.extracted for grade in grades],
        "correct": [grade.correct for grade in grades],
        "reason": [grade.reason for grade in grades],
        "test_verdicts": [list(grade.tests) for grade in grades],
        "published": [grade.published for grade in grades],
        "grader": [GRADER_VERSION] * len(grades),
    }
    schema = graded_schema()
    for name, values in added.items():
        field = schema.field(name)
        table = table.append_column(field, pyarrow.array(values, field.type))
    return table.select(schema.names)


def _samples(
    table: pyarrow.Table, plan: SuitePlan, problems: Sequence[Any], grades: Sequence[Grade]
) -> list[list[GradedSample]]:
    from pyarrow import compute

    tokens = compute.list_value_length(table["token_ids"]).to_pylist()
    empty = compute.equal(compute.utf8_trim_whitespace(table["completion"]), "").to_pylist()
    reasons = table["finish_reason"].to_pylist()
    flat = [
        GradedSample(problem, row % plan.samples, grade, tokens[row], reasons[row], empty[row])
        for row, (problem, grade) in enumerate(zip(problems, grades, strict=True))
    ]
    return [flat[start : start + plan.samples] for start in range(0, len(flat), plan.samples)]


def prompt_id(ids: Sequence[int]) -> str:
    """A name for the tokens of a prompt: equal for two engines or two runs only if these are equal."""
    return hashlib.sha256(numpy.asarray(ids, dtype="<i4").tobytes()).hexdigest()[:16]
