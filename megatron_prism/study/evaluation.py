"""Evaluation of the models of a study on problem suites, with the paper's sampling (section 5 of its appendix).

Suites of mathematics are sampled 64 times at temperature 0.6 and top-p 0.95, all others 3 times at temperature 0.7,
both with at most 32,768 tokens per answer. A stage has one way to sample, so a model may have two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatron_prism.data.chat_format import STOP
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suite_files import SuiteFiles
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.pipeline.placeholder import is_placeholder, needed
from megatron_prism.study.midtraining import StudyInputs
from megatron_prism.verification.problems import suite_names
from megatron_prism.verification.settings import GradingSettings

# The suites of the paper, which stand for the user's while the recipe is only planned.
PAPER_SUITES = ("aime24", "aime25", "codeforces", "gpqa_diamond", "livecodebench", "math500")
MATH_SUITES = ("aime", "math")
ANSWER_TOKENS = 32_768


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
    """Add `evaluate_NAME`, and `evaluate_math_NAME` if there are suites of mathematics, for every model.

    An override of the first model's stage reaches those of the others, because they are compared.

    Args:
        models: name -> node; the first is the base.
        suites: folder with a file `SUITE.jsonl` per benchmark; the small form uses the suites of its corpus.
    """
    grading = GradingSettings(sandbox=sandbox)
    if tiny:
        sampling = SuiteSampling(max_new_tokens=8, seed=seed)
        stage = Evaluate(suites=["math"], limit=2, sampling=sampling, grading=replace(grading, workers=1))
        return _evaluate(graph, "evaluate", stage, models, corpus=inputs.corpus, tokenizer=inputs.tokenizer)
    folder = _folder(suites)
    names = list(PAPER_SUITES) if is_placeholder(folder) else suite_names(Path(folder))
    corpus = graph.add("suites", SuiteFiles(folder))
    added: list[Node] = []
    mathematics = [name for name in names if name.startswith(MATH_SUITES)]
    others = [name for name in names if name not in mathematics]
    for prefix, chosen, samples, temperature, top_p in (
        ("evaluate_math", mathematics, 64, 0.6, 0.95),
        ("evaluate", others, 3, 0.7, 1.0),
    ):
        if chosen:
            longest = min(ANSWER_TOKENS, inputs.architecture.max_position_embeddings)
            sampling = SuiteSampling(longest, temperature, top_p, stop=list(STOP), seed=seed)
            stage = Evaluate(suites=chosen, samples_per_problem=samples, sampling=sampling, grading=grading)
            given = {"corpus": corpus, "tokenizer": inputs.tokenizer}
            added += _evaluate(graph, prefix, stage, models, **given)
    return added


def _evaluate(
    graph: Graph, prefix: str, stage: Evaluate, models: Mapping[str, Node], **given: Node
) -> list[Node]:
    """A stage for every model, with the further inputs `given`."""
    added: list[Node] = []
    for name, node in models.items():
        derive = partial(_same_settings, added[0]) if added else None
        added.append(graph.add(f"{prefix}_{name}", stage, derive, model=node, **given))
    return added


def _same_settings(first: Node, stage: Evaluate) -> Evaluate:
    assert isinstance(first.stage, Evaluate)
    return replace(first.stage)


def _folder(suites: str) -> str:
    form = "a folder with a file SUITE.jsonl per benchmark (docs/verification.md)"
    folder = needed("suites", suites, f"suites: evaluate=true needs {form}; or try the recipe with --tiny")
    if not is_placeholder(folder) and not suite_names(Path(folder)):
        raise ConfigError(f"suites={suites}: no suites there; give {form}")
    return folder
