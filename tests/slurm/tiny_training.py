"""The dense shoebox model on a corpus small enough for a test, on one process per node; `two_nodes` trains it."""

from __future__ import annotations

from data_artifacts import small_corpus

from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.small_models import DENSE, VOCABULARY
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train


def recipe(*, steps: int = 60) -> Graph:
    graph = Graph("tiny", jobs=2)
    corpus = graph.add("corpus", small_corpus())
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=VOCABULARY), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    train = Train(
        architecture=DENSE,
        mixture="shoebox-mcs",
        steps=steps,
        batch=BatchConfig(sequence_length=128, micro_batch_size=1, global_batch_size=4),
        schedule=Schedule(lr=1e-3, warmup_steps=1),
        parallel=ParallelConfig(data_parallel_size=2),
        validation_batches=1,
        checkpoint_every=10,
    )
    graph.add("train", train, tokens=tokens, tokenizer=tokenizer)
    return graph
