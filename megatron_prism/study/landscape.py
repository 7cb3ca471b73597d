"""The graph of `prism analyze landscape`: two or three given models, suites, the landscape, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_prism.analysis.stages.landscape import MODELS, AnalyzeLandscape
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.given_model import ADDRESS, GivenModel, add_model, find_given_model
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.suites.stage import benchmark_files
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.report.stage import Report
from megatron_prism.study.evaluation import suite_grading
from megatron_prism.study.model_evaluation import EvaluationRequest
from megatron_prism.study.suite_names import sort_suites


@dataclass(frozen=True)
class LandscapeRequest:
    """What a user wants to know about the models between others.

    Attributes:
        models: base and mid-trained model, and the model of reinforcement learning if there is one.
        evaluation: how each point is evaluated; its `model` is not used.
        plane: fields of the stage: path_a, path_b, grid_alpha, grid_beta, dtype, confidence.
    """

    models: Sequence[str]
    evaluation: EvaluationRequest
    plane: Mapping[str, Any] = field(default_factory=dict)


def landscape_graph(request: LandscapeRequest) -> Graph:
    """The stages `base`, `tokenizer`, `midtrain`, `rl`, `problems`, `landscape` and `report`.

    Raises:
        PrismError: one line about a model, a suite or an engine that does not exist or does not fit.
    """
    if len(request.models) not in (2, 3):
        raise ConfigError(
            f"{len(request.models)} models: give a base and a mid-trained model, or these and one of reinforcement "
            "learning"
        )
    for model in request.models:
        if ADDRESS.match(model):
            raise ConfigError(f"{model}: the model behind a server cannot be merged; give its folder")
    if len(set(request.models)) < len(request.models):
        raise ConfigError(f"{', '.join(request.models)}: a model is named twice; nothing lies between")
    asked = request.evaluation
    suites = sort_suites(asked.suites, "--suite ")
    if suites.general or suites.long:
        raise ConfigError(
            "--suite: a landscape is evaluated on suites of problems; leave out 'long' and those of lm-eval"
        )
    plane = dict(request.plane)
    if len(request.models) == 2:
        for key in ("path_b", "grid_alpha", "grid_beta"):
            if plane.setdefault(key, []):
                raise ConfigError(f"{key}: two models have only the path between them; give three models")
    _require_same(request.models)
    graph = Graph("landscape")
    base, tokenizer, engine = add_model(
        graph, request.models[0], asked.engine, asked.tokenizer, options=asked.options, name=MODELS[0]
    )
    assert base is not None, "no address"
    given: dict[str, Node] = {MODELS[0]: base}
    for name, model in zip(MODELS[1:], request.models[1:], strict=False):
        given[name] = graph.add(name, GivenModel(model))
    stage = AnalyzeLandscape(
        samples_per_problem=asked.samples,
        limit=asked.limit,
        engine=engine,
        sampling=SuiteSampling(seed=asked.seed),
        batch_size=asked.batch_size,
        grading=suite_grading(asked.sandbox),
        **plane,
    )
    corpus = graph.add("problems", benchmark_files(suites.problems, asked.data, asked.benchmarks))
    graph.add("landscape", stage, tokenizer=tokenizer, corpus=corpus, **given)
    graph.add("report", Report(title="landscape of " + ", ".join(request.models)), **graph.nodes)
    return graph


def _require_same(models: Sequence[str]) -> None:
    """Refuse models that cannot be merged before anything runs; only headers are read."""
    from megatron_prism.merging.inputs import open_models

    open_models([find_given_model(model) for model in models])
