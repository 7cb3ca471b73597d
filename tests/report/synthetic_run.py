"""A small finished run on disk, in the layouts the stages write, sealed by the real `seal`.

Used by the report's tests; as a script it writes a page to look at: `python synthetic_run.py OUT.html`.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from pathlib import Path

from kept_answers import write_answers

from megatron_prism.evaluation.stage import Evaluate, write_results
from megatron_prism.evaluation.suite import SuiteResult
from megatron_prism.generation.engine import Completion
from megatron_prism.pipeline.artifact import Artifact, Receipt, partial_path, seal, write_json
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.verification.problems import Problem

HOSTILE = "<script>alert('x')</script> & \ud800 </pre>"
SOURCES = ("web", "code", "math", "science")
STAGES = {
    "corpus": ("corpus", {}),
    "tokenizer": ("tokenizer", {"corpus": "corpus"}),
    "tokens": ("tokens", {"corpus": "corpus", "tokenizer": "tokenizer"}),
    "base": ("train", {"tokens": "tokens"}),
    "midtrained": ("train", {"tokens": "tokens", "init": "base"}),
    "export": ("export", {"model": "midtrained", "tokenizer": "tokenizer"}),
    "eval-base": ("evaluation", {"model": "base", "tokenizer": "tokenizer", "corpus": "corpus"}),
    "eval-midtrained": ("evaluation", {"model": "midtrained", "tokenizer": "tokenizer", "corpus": "corpus"}),
}
PASSED = {
    "eval-base": {"math": 3, "science": 31, "code": 1},
    "eval-midtrained": {"math": 82, "science": 97, "code": 64},
}
PROBLEMS = 150


def make_run(run_dir: Path, names: list[str] | None = None) -> dict[str, Artifact]:
    """Seal the artifacts of `names` (all, if None) under `run_dir`; write graph.json for all."""
    (run_dir / "artifacts").mkdir(parents=True)
    artifacts: dict[str, Artifact] = {}
    for number, (name, (kind, inputs)) in enumerate(STAGES.items()):
        if names is not None and name not in names:
            continue
        final = run_dir / folder_of(name)
        partial = partial_path(final)
        partial.mkdir()
        metrics = write_outputs(name, kind, partial)
        receipt = Receipt(
            kind=kind,
            fingerprint=fingerprint_of(name),
            stage=name,
            config=config_of(kind),
            inputs={key: fingerprint_of(parent) for key, parent in inputs.items()},
            metrics=metrics,
            versions={"megatron-prism": "0.1.0", "torch": "2.13.0+cpu", "commit": "abc1234"},
            machine={"device": "Example CPU", "cores": 2, "memory_gib": 23.4},
            started=f"2026-03-01T10:{number:02d}:00+00:00",
            wall_seconds=7.0 + 20 * number,
        )
        artifacts[name] = seal(partial, final, receipt)
    write_graph(run_dir)
    return artifacts


def write_graph(run_dir: Path) -> None:
    stages = [
        {"name": n, "kind": k, "folder": folder_of(n), "inputs": i, "config": config_of(k)}
        for n, (k, i) in STAGES.items()
    ]
    report = {
        "name": "report",
        "kind": "report",
        "folder": "artifacts/report-0",
        "inputs": {"base": "base"},
        "config": {},
    }
    write_json(run_dir / "graph.json", {"recipe": "shoebox", "stages": [*stages, report]})


def folder_of(name: str) -> str:
    return f"artifacts/{STAGES[name][0]}-{fingerprint_of(name)[:12]}"


def fingerprint_of(name: str) -> str:
    return f"{list(STAGES).index(name) + 10:x}" * 32


def config_of(kind: str) -> dict:
    if kind == "evaluation":
        return to_mapping(Evaluate(limit=PROBLEMS))
    if kind == "train":
        return {"steps": 400, "global_batch_size": 16, "optimizer": {"lr": 3e-4, "min_lr": 3e-5}, "seed": 1}
    return {"seed": 1}


def write_outputs(name: str, kind: str, out: Path) -> dict:
    if kind == "train":
        return write_training(name, out)
    if kind == "evaluation":
        results = [suite_result(out, name, suite, passed) for suite, passed in PASSED[name].items()]
        return write_results(out, results, 0.95, {"engine": "megatron", "grader": {}})
    (out / "data.bin").write_bytes(b"x" * 3000)
    return {"max_abs_logit_difference": 3.1e-6} if kind == "export" else {}


def write_training(name: str, out: Path) -> dict:
    noise = random.Random(name)
    start, floor = (6.0, 2.4) if name == "base" else (2.6, 1.1)
    lines, validation = [], {}
    for step in range(1, 401):
        loss = floor + (start - floor) * math.exp(-step / 80) + noise.gauss(0, 0.05)
        lr = 3e-4 * min(1, step / 40) * (0.55 + 0.45 * math.cos(math.pi * step / 400))
        lines.append({"step": step, "consumed_tokens": step * 4096, "loss": loss, "lr": lr, "grad_norm": 1.0})
        if step % 50 == 0:
            validation = {s: loss + 0.1 * i for i, s in enumerate(SOURCES)}
            lines.append({"step": step, "validation": validation})
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "loss": lines[-2]["loss"],
        "validation": validation,
        "steps": 400,
        "tokens": 400 * 4096,
        "tokens_per_second": 21345.6,
        "parameters": 1234567,
        "peak": "measured 1024^3 bf16 matmul, 2 threads",
        "mfu": 0.314,
    }


def suite_result(out: Path, evaluation: str, suite: str, passed: int) -> SuiteResult:
    problems = [
        Problem(f"{suite}-{i}", suite, f"User: question {i}?\nAssistant:", "math", str(i))
        for i in range(PROBLEMS)
    ]
    completions = []
    for i in range(PROBLEMS):
        # Spread over the suite, so that the first few samples have both kinds.
        right = (i * 37) % PROBLEMS < passed
        text = f" <think>\nsteps {i}\n</think>\nThe answer is \\boxed{{{i if right else i + 1}}}."
        if i == 1:
            text += HOSTILE
        finish = "length" if evaluation == "eval-base" and i % 3 == 0 else "stop"
        completions.append([Completion(text, [0] * (40 + i % 7), [-1.0] * (40 + i % 7), finish)])
    return write_answers(out, suite, problems, completions)


if __name__ == "__main__":
    from megatron_prism.report.stage import build_report

    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "run")
        page = build_report(Path(folder) / "run")[0].read_text()
    Path(sys.argv[1]).write_text(page)
