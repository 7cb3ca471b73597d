"""Mid-training of a published model, and what comes before and after it: import, text, export, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.mixture import Mixture
from megatron_prism.data.shoebox.corpus import DEFAULT_CHARACTERS, ShoeboxCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import ModelTokenizer, TrainTokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.pipeline.placeholder import is_placeholder, needed
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.report.stage import Report
from megatron_prism.study.layouts import TRAIN, LayoutTable, layout_follows
from megatron_prism.study.random_checkpoint import RandomCheckpoint, tiny_architecture
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

# Table 16.
SEQUENCE_LENGTH = 8192
PAPER_MIXTURES = ("math", "mc", "mcs")
TINY_VOCABULARY = 1024
TINY_STEPS = 4
TINY_CHARACTERS = 200_000
# A source is a folder (no ending) or a file with one of these endings.
SOURCE_ENDINGS = ("", ".jsonl.zst", ".jsonl.gz", ".jsonl", ".parquet", ".txt")


@dataclass(frozen=True)
class StudyInputs:
    """The inputs of all phases: the imported model and the text."""

    architecture: Architecture
    imported: Node
    corpus: Node
    tokenizer: Node
    tokens: Node


def published_model(
    graph: Graph, model: str, *, checkpoint: str, data: str, mixtures: Sequence[str]
) -> StudyInputs:
    """Import a published model and tokenize the sources of the mixtures with its tokenizer.

    Args:
        model: Hugging Face name of the model; the architecture is the published one.
        checkpoint: Hugging Face folder of the model.
        data: folder with one folder or file per source, named like the source.

    Raises:
        ConfigError: if a path does not exist, or `data` does not have all sources.
    """
    imported = graph.add("import", ImportHF(source=_checkpoint(checkpoint, model)))
    sources = {source: path for mixture in mixtures for source, path in _sources(data, mixture).items()}
    corpus = graph.add("corpus", FileCorpus(sources=sources))
    return _study_inputs(graph, architecture_from_config(published_config(model)), imported, corpus)


def miniature(graph: Graph, model: str, seed: int) -> StudyInputs:
    """Make a random miniature of a published model and a small corpus, in place of `published_model`."""
    architecture = tiny_architecture(architecture_from_config(published_config(model)), TINY_VOCABULARY)
    characters = dict.fromkeys(DEFAULT_CHARACTERS, TINY_CHARACTERS)
    corpus = graph.add("corpus", ShoeboxCorpus(characters=characters, held_out_problems=64))
    vocabulary = graph.add("vocabulary", TrainTokenizer(vocab_size=TINY_VOCABULARY), corpus=corpus)
    random = graph.add("checkpoint", RandomCheckpoint(model=model, seed=seed), tokenizer=vocabulary)
    imported = graph.add("import", ImportHF(), checkpoint=random)
    return _study_inputs(graph, architecture, imported, corpus)


def _study_inputs(graph: Graph, architecture: Architecture, imported: Node, corpus: Node) -> StudyInputs:
    tokenizer = graph.add("tokenizer", ModelTokenizer(), model=imported)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    return StudyInputs(architecture, imported, corpus, tokenizer, tokens)


def add_midtraining(
    graph: Graph,
    inputs: StudyInputs,
    mixture: str,
    *,
    steps: int,
    learning_rate: float,
    layouts: LayoutTable,
    gpus: int,
    seed: int,
) -> Node:
    """Table 16 of the paper: 128 sequences of 8,192 tokens per step, which is 26.2B tokens in 25,000 steps."""
    train = Train(
        architecture=inputs.architecture,
        mixture=mixture,
        steps=steps,
        seed=seed,
        dtype="bf16",
        batch=BatchConfig(sequence_length=SEQUENCE_LENGTH, micro_batch_size=1, global_batch_size=128),
        schedule=Schedule(lr=learning_rate, style="cosine", warmup_steps=steps // 50, final_factor=0.1),
        optimizer=OptimizerSettings(beta1=0.9, beta2=0.95, eps=1e-10, weight_decay=0.1, clip_grad=1.0),
        validate_every=1000,
        checkpoint_every=500,
        log_every=10,
    )
    return _add_training(graph, inputs, train, layout_follows(layouts, TRAIN, gpus))


def add_tiny_midtraining(
    graph: Graph, inputs: StudyInputs, mixture: str, *, parallel: ParallelConfig, seed: int
) -> Node:
    """A few steps on the shoebox, in fp32 on two processes.

    Args:
        mixture: one of the paper's, in place of which its shoebox form is used, or one of shoebox sources.
    """
    train = Train(
        architecture=inputs.architecture,
        mixture=_tiny_mixture(mixture),
        steps=TINY_STEPS,
        seed=seed,
        batch=BatchConfig(sequence_length=128, micro_batch_size=2, global_batch_size=4),
        schedule=Schedule(lr=1e-3, warmup_steps=1),
        parallel=parallel,
        validation_batches=1,
    )
    return _add_training(graph, inputs, train, None)


def _add_training(graph: Graph, inputs: StudyInputs, train: Train, implied: Any) -> Node:
    return graph.add(
        "midtrain",
        train,
        None,
        implied,
        tokens=inputs.tokens,
        tokenizer=inputs.tokenizer,
        init=inputs.imported,
    )


def _tiny_mixture(mixture: str) -> str:
    Mixture.load(mixture)
    name = f"shoebox-{mixture}" if mixture in PAPER_MIXTURES else mixture
    for source in Mixture.load(name).weights:
        if source not in DEFAULT_CHARACTERS:
            raise ConfigError(
                f"mixture={mixture}: tiny=true has no source '{source}'; use one of {', '.join(PAPER_MIXTURES)}, or a "
                f"mixture of {', '.join(DEFAULT_CHARACTERS)}"
            )
    return name


def add_export_and_report(graph: Graph, model: str, trained: Node, tiny: bool) -> Graph:
    """Export the last trained model, and add a report on all stages of the study."""
    reported = {name: node for name, node in graph.nodes.items() if name not in ("vocabulary", "checkpoint")}
    # Two copies of a published model in fp32 do not fit into memory, so the check compares tensors instead of logits.
    reported["export"] = graph.add("export", ExportHF(check="logits" if tiny else "tensors"), model=trained)
    graph.add("report", Report(title=f"{model}: mid-training", recipe=graph.name), **reported)
    return graph


def trained_architecture(node: Node) -> Architecture:
    """The architecture of the model that a `train` stage produces."""
    assert isinstance(node.stage, Train)
    return node.stage.trained_architecture


def with_architecture_of(node: Node, stage: Train) -> Train:
    """`stage` with the architecture of the model that `node` produces; for `Graph.add`'s `derive`."""
    return replace(stage, architecture=trained_architecture(node))


def initial_architecture(node: Node) -> Architecture:
    """The architecture of the model that a `train` stage starts from."""
    assert isinstance(node.stage, Train)
    return node.stage.architecture


def _checkpoint(folder: str, model: str) -> str:
    message = (
        f"checkpoint: give the Hugging Face folder of {model} (checkpoint=DIR), or try the recipe with --tiny"
    )
    path = needed("checkpoint", folder, message)
    if not is_placeholder(path) and not Path(path).is_dir():
        raise ConfigError(f"checkpoint={folder}: no such folder")
    return path


def _sources(folder: str, mixture: str) -> dict[str, str]:
    """The path of each source of the mixture."""
    weights = Mixture.load(mixture).weights
    message = f"data: give the folder with the sources of mixture={mixture} (data=DIR), or try the recipe with --tiny"
    given = needed("data", folder, message)
    if is_placeholder(given):
        return {source: f"{given}/{source}" for source in weights}
    found = {}
    for source in weights:
        paths = [Path(folder) / f"{source}{ending}" for ending in SOURCE_ENDINGS]
        existing = next((path for path in paths if path.exists()), None)
        if existing is None:
            raise ConfigError(
                f"data={folder}: source '{source}' of mixture={mixture} is missing; add a folder of that name, or a "
                f"file of that name ending in {', '.join(SOURCE_ENDINGS[1:])}"
            )
        found[source] = str(existing)
    return found
