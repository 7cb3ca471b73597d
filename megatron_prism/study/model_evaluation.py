"""The graph of `prism eval MODEL`: the stages that score one model on the suites that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.given_model import add_model
from megatron_prism.evaluation.harness.stage import general_stage
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suites.stage import benchmark_files
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.models.model_folder import longest_sequence
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.report.stage import Report
from megatron_prism.study.evaluation import suite_grading
from megatron_prism.study.suite_names import sort_suites
from megatron_prism.verification.sandbox.isolation import STRONG

# RULER's lengths. A model with fewer positions is asked these tasks at a quarter, half and all of them.
LENGTHS = (8192, 16384, 32768, 65536, 131072)
RULER_SAMPLES = 100
SHORT_TASKS = ("needle_single", "needle_multikey", "needle_prose")


@dataclass(frozen=True)
class EvaluationRequest:
    """What a user wants to know about a model.

    Attributes:
        model: a folder, an artifact of a run, or the address of a server.
        suites: "reasoning", "general", "long", "shoebox", tasks of lm-eval as `lm-eval:TASK`, or files and folders of
            suites.
        engine: None: the one that fits the model.
        tokenizer: a folder; None: the model's own.
        options: of the engine.
        data: benchmark -> local file in place of its own.
        benchmarks: only these of the suites' benchmarks; empty: all.
        samples: completions per problem; None: as the suite says.
        limit: problems per benchmark, and samples per RULER task; None: all.
    """

    model: str
    suites: Sequence[str]
    engine: str | None = None
    tokenizer: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Sequence[str] = ()
    samples: int | None = None
    limit: int | None = None
    seed: int = 0
    sandbox: str = STRONG
    batch_size: int = 32


def evaluation_graph(request: EvaluationRequest) -> Graph:
    """Model and tokenizer; `problems` and `evaluate`; `ruler`; `harness`; and the report.

    Raises:
        PrismError: one line about a model, a suite or an engine that does not exist or does not fit.
    """
    suites = sort_suites(request.suites, "--suite ")
    if not suites.problems:
        for option, names in (("--data", list(request.data)), ("--benchmark", list(request.benchmarks))):
            if names:
                raise ConfigError(f"{option} {names[0]}: no suite with benchmarks is evaluated")
    graph = Graph("eval")
    files = benchmark_files(suites.problems, request.data, request.benchmarks) if suites.problems else None
    model, tokenizer, engine = add_model(
        graph, request.model, request.engine, request.tokenizer, options=request.options
    )
    given: dict[str, Node] = {"tokenizer": tokenizer} | ({} if model is None else {"model": model})
    scored: dict[str, Node] = {}
    if files is not None:
        corpus = graph.add("problems", files)
        scored["evaluate"] = graph.add("evaluate", _problems(request, engine), corpus=corpus, **given)
    if suites.long:
        scored["ruler"] = graph.add("ruler", _ruler(request, engine), **given)
    if suites.general:
        stage = general_stage(suites.general, limit=request.limit, engine=engine)
        scored["harness"] = graph.add("harness", stage, **given)
    reported = graph.nodes | scored
    graph.add("report", Report(title=f"evaluation of {request.model}"), **reported)
    return graph


def _problems(request: EvaluationRequest, engine: EngineConfig) -> Evaluate:
    return Evaluate(
        samples_per_problem=request.samples,
        limit=request.limit,
        engine=engine,
        sampling=SuiteSampling(seed=request.seed),
        batch_size=request.batch_size,
        grading=suite_grading(request.sandbox),
    )


def _ruler(request: EvaluationRequest, engine: EngineConfig) -> RulerEvaluate:
    """RULER at the lengths that the model has positions for."""
    positions = None if "://" in request.model else longest_sequence(Path(request.model))
    lengths = [length for length in LENGTHS if positions is None or length <= positions]
    samples = RULER_SAMPLES if request.limit is None else request.limit
    if lengths:
        return RulerEvaluate(lengths=lengths, samples=samples, engine=engine)
    assert positions is not None
    return RulerEvaluate(
        tasks=list(SHORT_TASKS),
        lengths=[positions // 4, positions // 2, positions],
        samples=samples,
        engine=engine,
    )
