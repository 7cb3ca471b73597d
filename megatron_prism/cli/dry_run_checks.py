"""What a deep dry run checks between stages, and of stages that train nothing: models, lengths, vocabularies, names."""

from __future__ import annotations

from megatron_prism.cli.dry_run_inputs import check_headers, check_suites
from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.parameter_names import check_parameter_map
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.node import Node
from megatron_prism.platform.process_groups import session
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.stage import Reinforce
from megatron_prism.training.stage import Train

# Inputs that are the model a stage starts from or reads.
MODEL_INPUTS = ("init", "model")


def check_stage(graph: Graph, node: Node) -> list[str]:
    """Check one stage against its inputs; returns a line for each check that found something to count.

    Raises:
        PrismError: naming the stages, the key and both values.
    """
    lines: list[str] = []
    stage, given = node.stage, _model_of(graph, node)
    if isinstance(stage, Train | Reinforce) and given is not None:
        parent = next(node.inputs[name].name for name in MODEL_INPUTS if name in node.inputs)
        stage.architecture.require_same(given, f"the model of stage '{parent}'")
    _check_lengths(node, given)
    check_suites(node)
    if isinstance(stage, ImportHF):
        lines += check_headers(stage)
    if isinstance(stage, ImportHF | ExportHF):
        architecture = given or _consumer(graph, node)
        if architecture is not None:
            with session():
                count = check_parameter_map(architecture)
            lines.append(f"the parameter table of family {architecture.family} covers all {count} tensors")
    return lines


def _check_lengths(node: Node, model: Architecture | None) -> None:
    stage, tokens, tokenizer = node.stage, node.inputs.get("tokens"), node.inputs.get("tokenizer")
    if isinstance(stage, Train) and tokens is not None and isinstance(tokens.stage, PackDocuments):
        packed = tokens.stage.sequence_length
        if packed != stage.batch.sequence_length:
            raise ConfigError(
                f"batch.sequence_length={stage.batch.sequence_length}, but stage '{tokens.name}' packs sequences of "
                f"{packed} tokens; set both to the same number"
            )
    if isinstance(stage, Train | Reinforce) and tokenizer is not None:
        made = tokenizer.stage
        if isinstance(made, TrainTokenizer) and made.vocab_size > stage.architecture.vocab_size:
            raise ConfigError(
                f"architecture.vocab_size={stage.architecture.vocab_size} is smaller than vocab_size="
                f"{made.vocab_size} of stage '{tokenizer.name}'; make the model's as large"
            )
    if model is None:
        return
    longest = model.max_position_embeddings
    if isinstance(stage, RulerEvaluate) and max(stage.lengths) > longest:
        raise ConfigError(
            f"lengths: {max(stage.lengths)} is longer than the {longest} positions of the model; leave it out, or "
            "extend the model first"
        )
    if isinstance(stage, Evaluate | Difficulty) and (stage.sampling.max_new_tokens or 0) > longest:
        raise ConfigError(
            f"sampling.max_new_tokens={stage.sampling.max_new_tokens} is longer than the {longest} positions of the "
            "model; choose a smaller number"
        )


def _model_of(graph: Graph, node: Node) -> Architecture | None:
    """The architecture of the model that a stage starts from or reads; None if it has none or it is not known."""
    parents = [node.inputs[name] for name in MODEL_INPUTS if name in node.inputs]
    return _produced(graph, parents[0]) if parents else None


def _produced(graph: Graph, node: Node) -> Architecture | None:
    """The architecture of the model that a stage produces; None if it follows from files that are not here."""
    stage = node.stage
    if isinstance(stage, Train):
        return stage.trained_architecture
    if isinstance(stage, Reinforce):
        return stage.architecture
    if isinstance(stage, ImportHF):
        return _published(stage)
    # A merge has the architecture of its inputs, which are all the same.
    found = [_produced(graph, parent) for parent in node.inputs.values()]
    return next((each for each in found if each is not None), None)


def _published(stage: ImportHF) -> Architecture | None:
    """The architecture in config.json, without the weights."""
    from pathlib import Path

    from megatron_prism.errors import CheckpointError
    from megatron_prism.models.families import architecture_from_config
    from megatron_prism.pipeline.json_text import read_object

    path = Path(stage.source) / "config.json"
    if not stage.source or not path.is_file():
        return None
    return architecture_from_config(read_object(path, CheckpointError))


def _consumer(graph: Graph, node: Node) -> Architecture | None:
    """The architecture that a later stage expects of this one's model."""
    for other in graph.nodes.values():
        if node in other.inputs.values() and isinstance(other.stage, Train | Reinforce):
            return other.stage.architecture
    return None
