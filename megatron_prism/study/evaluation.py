"""Evaluation of the models of a study on suites of benchmarks; the suite says how each is sampled.

The packaged suite `reasoning` has the paper's settings (section 5 of its appendix): 64 samples of mathematics, 3 of the
rest, at most 32,768 tokens per answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.harness.stage import Harness, general_stage
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suites.stage import benchmark_files
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.study.midtraining import StudyInputs
from megatron_prism.study.suite_names import LONG, sort_suites
from megatron_prism.verification.settings import GradingSettings

REASONING = "reasoning"
# For all tests of a program together, which are dozens; each has its own limit, of 6 seconds in LiveCodeBench.
PROGRAM_SECONDS = 120.0


def add_evaluations(
    graph: Graph,
    inputs: StudyInputs,
    models: Mapping[str, Node],
    *,
    suites: str,
    sandbox: str,
    seed: int,
    tiny: bool,
) -> list[Node]:
    """Add `benchmarks`, and `evaluate_NAME` and `harness_NAME` for every model.

    An override of the first model's stage reaches those of the others, because they are compared.

    Args:
        models: name -> node; the first is the base.
        suites: packaged suites, suite files or folders with a file `SUITE.jsonl` per benchmark, and suites and tasks of
            lm-eval, with commas between them; the small form uses the suites of its corpus.

    Raises:
        ConfigError: for a name that is no suite, or RULER, which is a part of `long_context`.
    """
    if tiny:
        sampling = SuiteSampling(max_new_tokens=8, seed=seed)
        grading = GradingSettings(workers=1, sandbox=sandbox)
        stage = Evaluate(suites=["math"], limit=2, sampling=sampling, grading=grading)
        return _add(graph, "evaluate", stage, models, corpus=inputs.corpus, tokenizer=inputs.tokenizer)
    names = sort_suites([name.strip() for name in suites.split(",")], "suites=")
    if names.long:
        raise ConfigError(f"suites={LONG}: long_context=true evaluates long contexts; leave it out here")
    added: list[Node] = []
    if names.problems:
        # The positions of the published model bound the answers of all models, which are compared.
        positions = inputs.architecture.max_position_embeddings
        corpus = graph.add("benchmarks", benchmark_files(names.problems, most_new_tokens=positions))
        problems = Evaluate(sampling=SuiteSampling(seed=seed), grading=suite_grading(sandbox))
        added += _add(graph, "evaluate", problems, models, corpus=corpus, tokenizer=inputs.tokenizer)
    if names.general:
        added += _add(graph, "harness", general_stage(names.general), models, tokenizer=inputs.tokenizer)
    return added


def suite_grading(sandbox: str) -> GradingSettings:
    """Grading of benchmarks: programs have time for dozens of tests, and end at the first that fails."""
    return GradingSettings(sandbox=sandbox, program_seconds=PROGRAM_SECONDS, stop_early=True)


def _add(
    graph: Graph, prefix: str, stage: Evaluate | Harness, models: Mapping[str, Node], **given: Node
) -> list[Node]:
    """A stage for every model, with the further inputs `given`."""
    added: list[Node] = []
    for name, node in models.items():
        derive = partial(_same_settings, added[0]) if added else None
        added.append(graph.add(f"{prefix}_{name}", stage, derive, model=node, **given))
    return added


def _same_settings(first: Node, stage: Evaluate | Harness) -> Evaluate | Harness:
    assert isinstance(first.stage, Evaluate | Harness)
    return replace(first.stage)
