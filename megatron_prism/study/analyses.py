"""The analyses of a study: what each kind of training changed in weights, representations and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_prism.analysis.stages.cka import AnalyzeCka
from megatron_prism.analysis.stages.confidence import AnalyzeConfidence
from megatron_prism.analysis.stages.direction import AnalyzeDirection
from megatron_prism.analysis.stages.spectrum import AnalyzeSpectrum
from megatron_prism.analysis.stages.trajectory import AnalyzeTrajectory
from megatron_prism.analysis.stages.weights import AnalyzeWeights
from megatron_prism.pipeline.graph import Graph, Node


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
    compared = {node.name: node for node in (models.base, models.start, models.rl) if node is not None}
    compared["base"] = compared.pop(models.base.name)
    added = [graph.add("weights", AnalyzeWeights(), **named)]
    if len(others) > 1:
        added.append(graph.add("direction", AnalyzeDirection(), **named))
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
