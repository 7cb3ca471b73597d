"""The whole pipeline at a size two CPU cores can carry: a tiny Granite (dense) or a tiny Nemotron-H (hybrid)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.conversion.stage import ExportHF
from megatron_prism.data.shoebox.corpus import ShoeboxCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.graph import Graph
from megatron_prism.report.stage import Report
from megatron_prism.training.loop import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

VOCABULARY = 2048
SEQUENCE_LENGTH = 128
# 1 / sqrt(hidden size): at 0.02 so narrow a model takes far longer to learn to copy.
INITIALIZER_RANGE = 0.088

DENSE = Architecture(
    family="granite",
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_layers=4,
    ffn_hidden_size=384,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=32,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    attention_multiplier=1 / 32**0.5,
    # Granite's scalars at values that suit this width: the four seams are exercised, training is not slowed.
    embedding_multiplier=8.0,
    residual_multiplier=0.5,
    logits_scaling=1.5,
    initializer_range=INITIALIZER_RANGE,
)
HYBRID = Architecture(
    family="nemotron_h",
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_layers=10,
    ffn_hidden_size=384,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=32,
    activation="squared_relu",
    max_position_embeddings=1024,
    tie_word_embeddings=False,
    position_embedding="none",
    hybrid_pattern="M-M*-M-M*-",
    mamba_num_heads=8,
    mamba_head_dim=32,
    mamba_state_dim=32,
    mamba_num_groups=2,
    initializer_range=INITIALIZER_RANGE,
)
LEARNING_RATE = 4e-3
MODELS = {"dense": DENSE, "hybrid": HYBRID}


@dataclass(frozen=True)
class Preset:
    """How long to train and how much to ask."""

    base_steps: int
    midtrain_steps: int
    problems: int


PRESETS = {"full": Preset(100, 1000, 200), "short": Preset(6, 8, 8)}


def recipe(model: str = "dense", seed: int = 1, preset: str = "full", mixture: str = "shoebox-mcs") -> Graph:
    """Corpus, tokenizer, blend, base pretraining, PRISM mid-training, export, evaluation of both, report."""
    one_of(model, MODELS, "model")
    one_of(preset, PRESETS, "preset")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must be 0 or more")
    size, architecture = PRESETS[preset], MODELS[model]
    graph = Graph("shoebox")
    corpus = graph.add("corpus", ShoeboxCorpus())
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=VOCABULARY), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)

    def train(mixture: str, steps: int) -> Train:
        return Train(
            architecture=architecture,
            mixture=mixture,
            steps=steps,
            seed=seed,
            batch=BatchConfig(sequence_length=SEQUENCE_LENGTH, micro_batch_size=8, global_batch_size=8),
            schedule=Schedule(lr=LEARNING_RATE, warmup_steps=max(1, steps // 20), final_factor=0.05),
            optimizer=OptimizerSettings(beta2=0.98, eps=1e-8),
            validate_every=max(1, steps // 4),
            checkpoint_every=200,
            log_every=25,
        )

    base = graph.add("base", train("shoebox-base", size.base_steps), tokens=tokens, tokenizer=tokenizer)
    midtrain = graph.add(
        "midtrain",
        train(mixture, size.midtrain_steps),
        tokens=tokens,
        tokenizer=tokenizer,
        init=base,
    )
    export = graph.add("export", ExportHF(), model=midtrain, tokenizer=tokenizer)
    questions = Evaluate(
        limit=size.problems,
        batch_size=size.problems,
        sampling=SamplingParams(max_new_tokens=96, temperature=0.6, top_p=0.95, stop=["User:"], seed=seed),
    )
    scores = {
        f"evaluate_{node.name}": graph.add(
            f"evaluate_{node.name}", questions, model=node, tokenizer=tokenizer, corpus=corpus
        )
        for node in (base, midtrain)
    }
    everything = {
        node.name: node for node in (corpus, tokenizer, tokens, base, midtrain, export, *scores.values())
    }
    graph.add("report", Report(title=f"shoebox: PRISM on a small {model} model"), **everything)
    return graph
