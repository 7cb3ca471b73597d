"""What the recipes of the published models share: import, mid-training with the paper's numbers, export, report.

With `long_context=true` the restoration of long contexts comes between (`recipes.long_context`), with `rl=true`
reinforcement learning from the trained model and from the base model follows (`recipes.reinforcement`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.conversion.tiny import RandomCheckpoint, tiny_architecture
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.mixture import Mixture
from megatron_prism.data.shoebox.corpus import DEFAULT_CHARACTERS, ShoeboxCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import ModelTokenizer, TrainTokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.recipes.long_context import MIXTURE as LONG_MIXTURE
from megatron_prism.recipes.long_context import LongContext, add_long_context
from megatron_prism.recipes.reinforcement import add_reinforcement, paper_branch, tiny_branch
from megatron_prism.report.stage import Report
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.verification.code import STRONG

TINY_VOCABULARY = 1024
TINY_STEPS = 4
TINY_CHARACTERS = 200_000
# Of what a source may be: a folder, or one file with any of these endings.
SOURCE_ENDINGS = ("", ".jsonl.zst", ".jsonl.gz", ".jsonl", ".parquet", ".txt")


def paper_midtraining(architecture: Architecture, mixture: str, parallel: ParallelConfig, seed: int) -> Train:
    """Table 16 of the paper: 25,000 steps of 128 sequences of 8,192 tokens, 26.2B tokens in all."""
    return Train(
        architecture=architecture,
        mixture=mixture,
        steps=25_000,
        seed=seed,
        dtype="bf16",
        batch=BatchConfig(sequence_length=8192, micro_batch_size=1, global_batch_size=128),
        schedule=Schedule(lr=5e-5, style="cosine", warmup_steps=500, final_factor=0.1),
        optimizer=OptimizerSettings(beta1=0.9, beta2=0.95, eps=1e-10, weight_decay=0.1, clip_grad=1.0),
        parallel=parallel,
        validate_every=1000,
        checkpoint_every=500,
        log_every=10,
    )


def tiny_midtraining(architecture: Architecture, parallel: ParallelConfig, seed: int) -> Train:
    """A few steps on the shoebox, in fp32 on two processes."""
    return Train(
        architecture=architecture,
        mixture="shoebox-mcs",
        steps=TINY_STEPS,
        seed=seed,
        batch=BatchConfig(sequence_length=128, micro_batch_size=2, global_batch_size=4),
        schedule=Schedule(lr=1e-3, warmup_steps=1),
        parallel=parallel,
        validation_batches=1,
    )


def midtrain_recipe(
    name: str,
    model: str,
    parallel: ParallelConfig,
    tiny_parallel: ParallelConfig,
    long_context: LongContext,
) -> Callable[..., Graph]:
    """The recipe of one published model: import -> mid-training -> (merge -> extension) -> export.

    Args:
        model: its Hugging Face name; its architecture is the published one.
        parallel, tiny_parallel: layout of the mid-training, for a node of eight GPUs and for `tiny`.
        long_context: how the model reaches 128k tokens.
    """
    restoration = long_context

    def recipe(
        checkpoint: str = "",
        data: str = "",
        mixture: str = "mcs",
        seed: int = 1,
        tiny: bool = False,
        long_context: bool = False,
        rl: bool = False,
        prompts: str = "",
        method: str = "paper",
        sandbox: str = STRONG,
    ) -> Graph:
        """Build the graph.

        Args:
            checkpoint: the model's Hugging Face folder.
            data: folder with a folder or file per source of the mixture, called as the source is.
            tiny: a random miniature of the model on a small corpus, in place of both.
            long_context: also merge, extension to 128k tokens and RULER; `data` then holds the sources of the mixture
                long-context, too, and the export is of the extended model.
            rl: also the difficulty filter and reinforcement learning, and the export is of the model it ends with.
            prompts: JSON lines, or a folder of them, for `rl`.
            method: of reinforcement learning, see rl/variants.py.
            sandbox: how programs that a model wrote are isolated, "strong" or "weak".

        Raises:
            ConfigError: when a path is missing or the folder lacks a source.
        """
        architecture = architecture_from_config(published_config(model))
        graph = Graph(name)
        if tiny:
            architecture = tiny_architecture(architecture, TINY_VOCABULARY)
            characters = dict.fromkeys(DEFAULT_CHARACTERS, TINY_CHARACTERS)
            corpus = graph.add("corpus", ShoeboxCorpus(characters=characters, held_out_problems=64))
            vocabulary = graph.add("vocabulary", TrainTokenizer(vocab_size=TINY_VOCABULARY), corpus=corpus)
            random = graph.add("checkpoint", RandomCheckpoint(model=model, seed=seed), tokenizer=vocabulary)
            imported = graph.add("import", ImportHF(), checkpoint=random)
            train = tiny_midtraining(architecture, tiny_parallel, seed)
        else:
            imported = graph.add("import", ImportHF(source=_checkpoint(checkpoint, model)))
            sources = _sources(data, mixture)
            if long_context:
                sources |= _sources(data, LONG_MIXTURE)
            corpus = graph.add("corpus", FileCorpus(sources=sources))
            train = paper_midtraining(architecture, mixture, parallel, seed)
        tokenizer = graph.add("tokenizer", ModelTokenizer(), model=imported)
        tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
        midtrain = graph.add("midtrain", train, tokens=tokens, tokenizer=tokenizer, init=imported)
        everything: dict[str, Node] = {
            node.name: node for node in (corpus, imported, tokenizer, tokens, midtrain)
        }
        trained = midtrain
        if long_context:
            everything |= add_long_context(graph, architecture, restoration, everything, seed, tiny)
            trained = everything["extend"]
        if rl:
            branch = (
                tiny_branch(architecture, tiny_parallel, seed, method, sandbox)
                if tiny
                else paper_branch(architecture, parallel, seed, _prompts(prompts), method, sandbox)
            )
            starts = [
                (trained, partial(trained_architecture, trained)),
                (imported, partial(initial_architecture, midtrain)),
            ]
            everything |= add_reinforcement(graph, branch, starts, corpus, tokenizer)
            trained = everything[f"rl_{trained.name}"]
        # A published model does not fit twice in fp32 beside itself; its tensors are compared, not its logits.
        everything["export"] = graph.add(
            "export", ExportHF(check="logits" if tiny else "tensors"), model=trained
        )
        graph.add("report", Report(title=f"{model}: mid-training"), **everything)
        return graph

    return recipe


def trained_architecture(node: Node) -> Architecture:
    """Of the model that a `train` stage makes."""
    assert isinstance(node.stage, Train)
    return node.stage.trained_architecture


def initial_architecture(node: Node) -> Architecture:
    """Of the model that a `train` stage starts from."""
    assert isinstance(node.stage, Train)
    return node.stage.architecture


def _prompts(path: str) -> str:
    if not path or not Path(path).exists():
        raise ConfigError(
            f"prompts={path}: name the JSON lines with the prompts for rl=true (docs/rl.md), or try the recipe with "
            "--tiny"
        )
    return path


def _checkpoint(folder: str, model: str) -> str:
    if not folder:
        raise ConfigError(
            f"checkpoint: name the Hugging Face folder of {model} (checkpoint=DIR), or try the recipe with --tiny"
        )
    if not Path(folder).is_dir():
        raise ConfigError(f"checkpoint={folder}: no such folder")
    return folder


def _sources(folder: str, mixture: str) -> dict[str, str]:
    """Where each source of the mixture lies."""
    if not folder:
        raise ConfigError(
            f"data: name the folder with the sources of mixture={mixture} (data=DIR), or try the recipe with --tiny"
        )
    found = {}
    for source in Mixture.load(mixture).weights:
        paths = [Path(folder) / f"{source}{ending}" for ending in SOURCE_ENDINGS]
        there = next((path for path in paths if path.exists()), None)
        if there is None:
            raise ConfigError(
                f"data={folder}: has no '{source}', which mixture={mixture} draws from "
                f"(a folder, or a file ending in {', '.join(SOURCE_ENDINGS[1:])})"
            )
        found[source] = str(there)
    return found
