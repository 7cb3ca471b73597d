"""Train a small model on your own text, from raw files to a Hugging Face folder.

prism run examples/own_text.py path=FILE_OR_FOLDER
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_prism.conversion.stage import ExportHF
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.graph import Graph
from megatron_prism.report.stage import Report
from megatron_prism.study.small_models import MODELS
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

MIXTURE = Path(__file__).with_name("own_text.yaml")


def recipe(
    *, path: str = "", text_key: str = "text", model: str = "dense", vocab_size: int = 2048, steps: int = 200
) -> Graph:
    """Files -> tokenizer -> tokens -> training -> export -> report."""
    if not path:
        raise ConfigError(
            "path: give a file or folder of text, JSON lines or Parquet, for example path=notes/"
        )
    one_of(model, MODELS, "model")
    architecture = replace(MODELS[model], vocab_size=vocab_size)
    graph = Graph("own_text")
    corpus = graph.add("corpus", FileCorpus(sources={"text": path}, text_key=text_key, valid_percent=5))
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=vocab_size), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    train = Train(
        architecture=architecture,
        mixture=str(MIXTURE),
        steps=steps,
        batch=BatchConfig(sequence_length=128, micro_batch_size=8, global_batch_size=8),
        schedule=Schedule(lr=2e-3, warmup_steps=steps // 20),
        checkpoint_every=50,
        log_every=10,
    )
    trained = graph.add("train", train, tokens=tokens, tokenizer=tokenizer)
    export = graph.add("export", ExportHF(), model=trained, tokenizer=tokenizer)
    nodes = {node.name: node for node in (corpus, tokenizer, tokens, trained, export)}
    graph.add("report", Report(title=f"a {model} model of {path}"), **nodes)
    return graph
