"""A task's samples as kept answers, so that `prism eval show` and the report show them like those of other suites."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_prism.evaluation.generations import FOLDER
from megatron_prism.evaluation.grading import graded_schema
from megatron_prism.evaluation.harness.results import TaskResult


def write_answers(out: Path, result: TaskResult, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write `generations/TASK.parquet` under `out`, with the columns of an evaluation; what lm-eval lacks is empty.

    The completion of a question with choices is the choice that the model prefers. An answer is right if its value is
    above a half.

    Args:
        samples: the records of `results.run_task`.
    """
    import pyarrow
    from pyarrow import parquet

    rates, metric = result.rates(), result.metrics[0]
    if rates is None:
        return
    chosen = metric.partition(",")[2]
    rows = [
        _row(sample, rates[str(sample["doc_id"])], metric, result.record["kind"])
        for sample in samples
        if sample["filter"] == chosen
    ]
    schema = graded_schema()
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    path = out / FOLDER / f"{result.task}.parquet"
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns, schema=schema), path, compression="zstd")


def _row(sample: Mapping[str, Any], value: float, metric: str, kind: str) -> dict[str, Any]:
    arguments, responses = json.loads(sample["arguments"]), json.loads(sample["responses"])
    target = json.loads(sample["target"])
    prompt, completion, filtered = arguments[0][0], responses[0][0], json.loads(sample["filtered_responses"])
    if kind == "generate_until":
        extracted = filtered[0]
    else:
        endings = [str(ending) for _, ending in arguments]
        # acc_norm compares log-likelihoods per character, without the space before the choice.
        sizes = [max(1, len(ending.lstrip())) if metric.startswith("acc_norm") else 1 for ending in endings]
        best = max(range(len(endings)), key=lambda number: responses[number][0][0] / sizes[number])
        completion, extracted = endings[best], f"log-likelihood {responses[best][0][0]:.4g}"
        if isinstance(target, int) and 0 <= target < len(endings):
            target = endings[target]
    return {
        "id": str(sample["doc_id"]),
        "sample": 0,
        "prompt": _text(prompt),
        "completion": _text(completion),
        "kind": kind,
        "answer": _text(target),
        "extracted": f"{_text(extracted)} ({metric} {value:.4g})",
        "correct": value > 0.5,
        "reason": "correct" if value > 0.5 else "wrong",
        "finish_reason": "",
        "tokens": 0,
        "seconds": 0.0,
    }


def _text(value: Any) -> str:
    """Half a character, which Parquet cannot hold, becomes a question mark."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode("utf-8")
