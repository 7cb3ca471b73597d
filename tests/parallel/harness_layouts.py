"""Worker of test_harness_layouts.py: lm-eval's tasks under each layout of two ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
from parallel_runs import layout, write_results
from tiny_rl import artifact

from megatron_prism.evaluation.harness.stage import Harness

LAYOUTS = {
    "dense-tp2sp": layout(tp=2, sp=True),
    "dense-pp2": layout(pp=2),
    "dense-dp2": layout(dp=2),
    "hybrid-tp2": layout(tp=2),
}
CHOICES, ANSWERS, TEXTS = "letters", "answers", "texts"
DEFINITIONS: dict[str, dict[str, Any]] = {
    CHOICES: {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["B", "CAB", "DEAD", "FACE"],
        "doc_to_target": 1,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    ANSWERS: {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "A",
        "generation_kwargs": {"until": ["A"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.2},
        "metric_list": [{"metric": "exact_match"}],
    },
    TEXTS: {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}
# The first two are the same, and some are longer than the model's context.
DOCUMENTS = ["BACK", "BACK", "FACADE", "A", "DEADBEEF", "CAB" * 20, "D" * 70]


def write_tasks(folder: Path) -> None:
    folder.mkdir()
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    for task, definition in DEFINITIONS.items():
        data = {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}
        given = {"task": task, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{task}.yaml").write_text(json.dumps(given | definition))


def evaluate(folder: Path, name: str, parallel) -> dict[str, Any]:
    """Problems and responses of the tasks, in `folder/NAME`; on rank 0."""
    kind = name.partition("-")[0]
    stage = Harness(
        suites=[],
        tasks=list(DEFINITIONS),
        include_path=str(folder / "tasks"),
        parallel=parallel,
        batch_tokens=64,
    )
    out = folder / name
    out.mkdir(exist_ok=True)
    metrics = stage.run({each: artifact(folder / kind / each) for each in ("model", "tokenizer")}, out)
    if int(os.environ.get("RANK", "0")):
        assert metrics == {}
        return {}
    rows = pyarrow.parquet.read_table(out / "harness.parquet").to_pylist()
    return {
        "problems": json.loads((out / "problems.json").read_text()),
        "responses": [(row["task"], row["doc_id"], json.loads(row["responses"])) for row in rows],
        "shortened": metrics["shortened_prompts"],
    }


def main(folder: Path) -> None:
    write_results(folder, {name: evaluate(folder, name, each) for name, each in LAYOUTS.items()})
