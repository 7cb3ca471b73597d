"""The analyses of a study: what each kind of training changed in weights, representations and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_prism.analysis.stages.cka import AnalyzeCka
from megatron_prism.analysis.stages.confidence import AnalyzeConfidence
from megatron_prism.analysis.stages.direction import AnalyzeDirection
from megatron_prism.analysis.stages.spectrum import AnalyzeSpectrum
from megatron_prism.analysis.stages.trajectory import AnalyzeTrajectory
from megatron_prism.analysis.stages.weights import AnalyzeWeights
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.study.midtraining import StudyInputs
from megatron_prism.study.reinforcement import RLStages

# The paper evaluates reinforcement learning every so many steps.
KEPT_EVERY = 20
TINY_TEXTS = 8


@dataclass(frozen=True)
class StudiedModels:
    """What there is to analyse.

    Attributes:
        trained: the models after the base, such as the mid-trained and the extended one, in the order of training.
        start: the one of them with which the run `rl` began.
        rl: the run of reinforcement learning from a trained model; None: there is none.
        other_runs: further runs of reinforcement learning, such as that from the base.
        evaluations: of the base, the mid-trained model and the run, by the names of the models; may be empty.
    """

    base: Node
    trained: Sequence[Node]
    start: Node
    tokenizer: Node
    rl: Node | None = None
    other_runs: Sequence[Node] = ()
    evaluations: Mapping[str, Node] = field(default_factory=dict)


def add_analyses(graph: Graph, models: StudiedModels, cka: AnalyzeCka, **texts: Node) -> list[Node]:
    """Add the stages of `prism analyze` that need no choice of a user.

    Args:
        cka: how the representations are compared.
        texts: the input `corpus` of `cka`, if its texts are files of one.

    Returns:
        The new nodes.
    """
    runs = [*([models.rl] if models.rl else []), *models.other_runs]
    others = {node.name: node for node in (*models.trained, *runs)}
    named = {"base": models.base, **others}
    line = {node.name: node for node in (models.start, models.rl) if node is not None}
    compared = {"base": models.base, **line}
    added = [graph.add("weights", AnalyzeWeights(), **named)]
    # Not those of other runs: without a reward, as from a base model, a run has no direction.
    directed = {node.name: node for node in models.trained} | line
    if len(directed) > 1:
        added.append(graph.add("direction", AnalyzeDirection(), base=models.base, **directed))
    added += [
        graph.add("spectrum", AnalyzeSpectrum(), **compared),
        graph.add("cka", cka, tokenizer=models.tokenizer, **compared, **texts),
    ]
    if models.rl is not None:
        of_run = {models.start.name: models.start, models.rl.name: models.rl}
        added.append(graph.add("weights_rl", AnalyzeWeights(base=models.start.name), **of_run))
        trajectory = AnalyzeTrajectory(start=models.start.name, trained=models.rl.name)
        added.append(graph.add("trajectory", trajectory, **of_run))
    if models.evaluations:
        added.append(graph.add("confidence", AnalyzeConfidence(), **models.evaluations))
    return added


def add_study_analyses(
    graph: Graph,
    inputs: StudyInputs,
    models: Mapping[str, Node],
    *,
    runs: Mapping[str, Node],
    evaluations: Sequence[Node],
    tiny: bool,
) -> list[Node]:
    """`add_analyses` for a recipe of a published model.

    Args:
        models: name -> node, the base first, with the runs.
        runs: of reinforcement learning, by name.
        evaluations: of the models, or none.
    """
    trained = {name: node for name, node in models.items() if name not in ("base", *runs)}
    begun = {node.inputs["model"].name: node for node in runs.values()}
    start = next((node for node in reversed(trained.values()) if node.name in begun), models["midtrain"])
    rl = begun.get(start.name)
    answered = {node.inputs["model"].name: node for node in evaluations if isinstance(node.stage, Evaluate)}
    compared = [("base", inputs.imported), (start.name, start), *([(rl.name, rl)] if rl else [])]
    studied = StudiedModels(
        inputs.imported,
        trained=list(trained.values()),
        start=start,
        tokenizer=inputs.tokenizer,
        rl=rl,
        other_runs=[node for node in runs.values() if node is not rl],
        evaluations={name: answered[node.name] for name, node in compared if node.name in answered},
    )
    # The texts of the packaged sets; two models of 8B in fp32 would not fit beside each other, one in bf16 does.
    cka = AnalyzeCka(dtype="bf16")
    if tiny:
        cka = AnalyzeCka(samples=TINY_TEXTS, resample_size=TINY_TEXTS // 2)
    return add_analyses(graph, studied, cka)


def keep_weights_of_steps(stages: RLStages) -> RLStages:
    """The weights of every 20th step are kept for the trajectory, or of every step of a shorter run."""
    every = KEPT_EVERY if stages.train.steps > KEPT_EVERY else 1
    checkpoints = replace(stages.train.checkpoints, weights_every=every)
    return replace(stages, train=replace(stages.train, checkpoints=checkpoints))
