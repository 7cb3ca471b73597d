"""A recipe of one's own: pretrain a small model, mid-train it on a mixture of one's own, merge both, export.

prism run examples/own_recipe.py --show
prism run examples/own_recipe.py steps=50 weight=0.3
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from megatron_prism.conversion.stage import ExportHF
from megatron_prism.data.shoebox.corpus import ShoeboxCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.merging.stage import Merge
from megatron_prism.pipeline.graph import Graph
from megatron_prism.report.stage import Report
from megatron_prism.study.midtraining import with_architecture_of
from megatron_prism.study.small_models import DENSE
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

MIXTURE = str(Path(__file__).with_name("own_recipe.yaml"))


def recipe(*, steps: int = 200, lr: float = 1e-3, weight: float = 0.15, seed: int = 1) -> Graph:
    graph = Graph("own_recipe")
    corpus = graph.add("corpus", ShoeboxCorpus())
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=DENSE.vocab_size), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    batch, schedule = (
        BatchConfig(128, micro_batch_size=8, global_batch_size=8),
        Schedule(lr=lr, warmup_steps=5),
    )
    train = partial(Train, architecture=DENSE, steps=steps, seed=seed, batch=batch, schedule=schedule)
    base = graph.add("base", train(mixture="shoebox-base"), tokens=tokens, tokenizer=tokenizer)
    # An override of the base's architecture reaches the model that is trained from it.
    follow = partial(with_architecture_of, base)
    midtrain = graph.add(
        "midtrain", train(mixture=MIXTURE), follow, tokens=tokens, tokenizer=tokenizer, init=base
    )
    weights = {"base": weight, "midtrain": 1 - weight}
    merge = graph.add("merge", Merge(weights=weights), base=base, midtrain=midtrain)
    export = graph.add("export", ExportHF(), model=merge, tokenizer=tokenizer)
    graph.add("report", Report(title="A recipe of one's own"), base=base, midtrain=midtrain, export=export)
    return graph
