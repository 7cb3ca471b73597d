"""One task of lm-evaluation-harness, run: what the model was asked, what it answered, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.harness.definitions import Benchmark
from megatron_prism.evaluation.harness.package import quiet, seeded
from megatron_prism.evaluation.harness.tasks import source, without_answer
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.json_text import read_object

# A document's value of a metric: a number, or a list of them (one per instruction of IFEval).
Value = float | list[float]


@dataclass(frozen=True)
class TaskResult:
    """The scores of a task.

    Attributes:
        metrics: of the benchmark, as lm-eval names them with their filter, such as "acc_norm,none".
        aggregated: every metric that lm-eval reports for the task.
        values: metric -> document -> value, for each of `metrics`.
        record: lm-eval's type and version of the task, number of examples, where the documents come from, and how
            many of them do not have their right answer among the choices.
    """

    task: str
    metrics: list[str]
    aggregated: dict[str, float]
    values: dict[str, dict[str, Value]]
    record: dict[str, Any]

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> TaskResult:
        return cls(**read_object(path))

    def rates(self) -> dict[str, float] | None:
        """Document -> value of the first metric in 0..1; None if the metric is no rate, such as a perplexity.

        A metric is a rate if lm-eval's number for the task is the mean over documents; several instructions of a
        document count as its share of right ones.
        """
        metric = self.metrics[0]
        flat = {doc: _share(value) for doc, value in self.values[metric].items()}
        rates = {doc: value for doc, value in flat.items() if value is not None and 0 <= value <= 1}
        if len(rates) < len(flat):
            return None
        single = all(not isinstance(value, list) for value in self.values[metric].values())
        mean = sum(rates.values()) / len(rates)
        return rates if not single or abs(mean - self.aggregated[metric]) < 1e-9 else None


def run_task(
    lm: Any, task: Any, benchmark: Benchmark, *, limit: int | None, seed: int
) -> tuple[TaskResult, list[dict[str, Any]]]:
    """The task's scores, and a record for each document (and filter) for `write_samples`.

    Args:
        limit: number of documents, from the first on; None: all.
        seed: draws the examples of a prompt.

    Raises:
        ConfigError: if the task does not have a metric of the benchmark.
    """
    from lm_eval.evaluator import evaluate

    name = task.config.task
    task.set_fewshot_seed(seed=seed)
    with quiet(), seeded():
        found = evaluate(
            lm, {"tasks": {name: task}, "groups": {}}, limit=limit, bootstrap_iters=0, log_samples=True
        )
    samples = found["samples"][name]
    aggregated = {
        key: float(value)
        for key, value in found["results"][name].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    metrics = _metrics(name, benchmark, aggregated)
    result = TaskResult(
        name,
        metrics,
        aggregated,
        {metric: _values(samples, metric) for metric in metrics},
        {
            "kind": task.OUTPUT_TYPE,
            "version": str(found["versions"][name]),
            "num_fewshot": found["n-shot"][name],
            "dataset": source(task),
            "without_answer": len(without_answer(task, limit)),
        },
    )
    return result, [_record(name, sample) for sample in samples]


def write_samples(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A Parquet file with the columns of `_record`."""
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(list(records)), path, compression="zstd")


def join_samples(parts: Sequence[Path], path: Path) -> None:
    """One Parquet file from those of the tasks."""
    import pyarrow as pa
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(part) for part in parts]
    pyarrow.parquet.write_table(pa.concat_tables(tables), path, compression="zstd")


def _metrics(name: str, benchmark: Benchmark, aggregated: Mapping[str, float]) -> list[str]:
    """The benchmark's metrics with their filter; without any, the task's first."""
    if not benchmark.metrics:
        return [next(iter(aggregated))]
    wanted = [metric if "," in metric else f"{metric},{benchmark.filter}" for metric in benchmark.metrics]
    for metric in wanted:
        if metric not in aggregated:
            raise ConfigError(
                f"metrics: task '{name}' has no metric '{metric}'{suggest(metric, aggregated)}; it has "
                f"{', '.join(aggregated)}"
            )
    return wanted


def _values(samples: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Value]:
    name, _, chosen = metric.partition(",")
    return {
        str(sample["doc_id"]): _plain(sample[name])
        for sample in samples
        if sample["filter"] == chosen and name in sample
    }


def _plain(value: Any) -> Value:
    """lm-eval's values as JSON: booleans and numpy's numbers as floats, pairs as lists."""
    if isinstance(value, list | tuple):
        return [float(each) for each in value]
    return float(value)


def _share(value: Value) -> float | None:
    if isinstance(value, list):
        # lm-eval also has pairs, such as (log-likelihood, words).
        return sum(value) / len(value) if value and set(value) <= {0.0, 1.0} else None
    return value


def _record(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of lm-eval. What is nested or may hold half a character is JSON."""
    metrics = {metric: sample[metric] for metric in sample["metrics"]}
    return {
        "task": task,
        "doc_id": int(sample["doc_id"]),
        "filter": sample["filter"],
        "arguments": _json(sample["arguments"]),
        "responses": _json(sample["resps"]),
        "filtered_responses": _json(sample["filtered_resps"]),
        "target": _json(sample["target"]),
        "metrics": _json(metrics),
        "document_hash": sample["doc_hash"],
    }


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
