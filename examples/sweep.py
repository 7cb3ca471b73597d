"""A sweep: the same model at several learning rates and seeds; the stages before it are shared. A table at the end.

python examples/sweep.py runs/sweep
prism run examples/sweep.py rates=1e-3,3e-3 seeds=2 --executor slurm.yaml      # the runs of the grid side by side
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_prism.data.shoebox.corpus import ShoeboxCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.pipeline.graph import Graph
from megatron_prism.study.small_models import DENSE
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train


def recipe(*, rates: str = "1e-3,3e-3", seeds: int = 2, steps: int = 100) -> Graph:
    graph = Graph("sweep", jobs=2)
    corpus = graph.add("corpus", ShoeboxCorpus())
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=DENSE.vocab_size), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    for rate in str(rates).split(","):
        for seed in range(1, seeds + 1):
            train = Train(
                architecture=DENSE,
                mixture="shoebox-mcs",
                steps=steps,
                seed=seed,
                batch=BatchConfig(128, micro_batch_size=8, global_batch_size=8),
                schedule=Schedule(lr=float(rate), warmup_steps=5),
            )
            graph.add(f"lr{rate}_seed{seed}", train, tokens=tokens, tokenizer=tokenizer)
    return graph


def main(run_dir: Path) -> None:
    """Run the sweep, except for what is done, and print the losses on held-out mathematics."""
    artifacts = recipe().run(run_dir)
    table = Table("run", "learning rate", "seed", "validation loss, math")
    for name, artifact in artifacts.items():
        if artifact.kind == Train.kind:
            config = artifact.receipt.config
            loss = artifact.metrics["validation"]["math"]
            table.add_row(name, f"{config['schedule']['lr']:g}", str(config["seed"]), f"{loss:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sweep"))
