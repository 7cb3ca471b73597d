"""Questions: how long does it take to grade 10,000 kept answers, and to evaluate a small model on three suites?

    python benchmarks/evaluation.py --answers 10000 --model runs/shoebox/extend --json result.json

Kept answers: half right, half wrong, with reasoning before them, of the kinds that benchmarks/grading.py describes.
Both our verdict and that of the public grader are made. The time is from the Parquet parts to the scores.

Evaluation of a model: 200 problems of mathematics, science and code each, as `prism eval MODEL --suite shoebox`; the
model's loading is timed separately.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
from grading import realistic
from rich.console import Console
from rich.table import Table

from megatron_prism.evaluation.generations import FOLDER, PartWriter, chunks_of
from megatron_prism.evaluation.grading import grade_suite
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation.engine import Completion, Engine, SamplingParams
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.study.model_evaluation import EvaluationRequest, evaluation_graph
from megatron_prism.verification.grade import grader_versions
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.settings import GradingSettings

SAMPLES = 4


def kept_answers(folder: Path, answers: int) -> SuitePlan:
    """A suite of `answers` kept completions, four to a problem; every second one is wrong."""
    items = realistic(answers // SAMPLES)
    problems = [
        Problem(f"p{number}", "math", f"Problem {number}?", "math", item.answer, [], "math500")
        for number, item in enumerate(items)
    ]
    plan = SuitePlan("math500", problems, SamplingParams(), SAMPLES, list(range(len(problems))))
    completions = {problem.id: item.completion for problem, item in zip(problems, items, strict=True)}
    for chunk in chunks_of(plan):
        with PartWriter(folder / FOLDER / plan.name, chunk.number) as parts:
            for problem in chunk.problems:
                for number in range(SAMPLES):
                    text = completions[problem.id]
                    if number % 2:
                        text = text.replace("boxed{", "boxed{1")
                    parts.add(problem, number, [1] * 100, Completion(text, [5] * 600, [-0.1] * 600, "stop"))
    return plan


def grade(answers: int, rounds: int, workers: int) -> dict[str, Any]:
    """Seconds to grade and write kept answers, the pool's start included."""
    seconds, rate = [], 0.0
    with tempfile.TemporaryDirectory() as made:
        plan = kept_answers(Path(made), answers)
        for _ in range(rounds):
            start = time.perf_counter()
            with GradingSettings(workers=workers).open_pool() as pool:
                scores = grade_suite(Path(made), plan, pool).metrics(0.95)
            seconds.append(time.perf_counter() - start)
            rate = scores["pass_rate"]
    return {"answers": answers, "workers": workers, "seconds": seconds, "pass_rate": rate}


def evaluate(model: str, rounds: int) -> dict[str, Any]:
    """Seconds of the whole evaluation, and of loading the model in it."""
    whole, loading, rates = [], [], {}
    opened = EngineConfig.open

    @contextmanager
    def timed(self: EngineConfig, **options: Any) -> Iterator[Engine]:
        start = time.perf_counter()
        with opened(self, **options) as engine:
            loading.append(time.perf_counter() - start)
            yield engine

    EngineConfig.open = timed  # type: ignore[method-assign]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as made:
            graph = evaluation_graph(EvaluationRequest(model, ["shoebox"], batch_size=200))
            stage = graph.node("evaluate").stage
            assert isinstance(stage, Evaluate)
            graph.node("evaluate").stage = replace(stage, grading=GradingSettings(workers=2))
            graph.run(Path(made), target="problems")
            graph.run(Path(made), target="tokenizer")
            start = time.perf_counter()
            artifact = graph.run(Path(made), target="evaluate")["evaluate"]
            whole.append(time.perf_counter() - start)
            rates = {suite: each["pass_rate"] for suite, each in artifact.metrics["suites"].items()}
    after = [total - load for total, load in zip(whole, loading, strict=True)]
    return {"model": model, "after_loading": after, "loading": loading, "pass_rates": rates}


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="", help="a small model, such as runs/shoebox/extend")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results = {"kept answers": grade(arguments.answers, arguments.rounds, arguments.workers)}
    table = Table("", "seconds, median", "rounds")
    rows = [(f"grade {arguments.answers:,} kept answers", results["kept answers"]["seconds"])]
    if arguments.model:
        results["evaluation"] = evaluate(arguments.model, arguments.rounds)
        rows.append(("evaluate three suites of 200 problems", results["evaluation"]["after_loading"]))
        rows.append(("load the model", results["evaluation"]["loading"]))
    for name, seconds in rows:
        table.add_row(name, f"{statistics.median(seconds):.1f}", " ".join(f"{each:.1f}" for each in seconds))
    Console().print(table)
    measure.write(arguments, {"graders": grader_versions(["math"]), "results": results})


if __name__ == "__main__":
    main()
