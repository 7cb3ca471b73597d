"""Granite-3.3-8B-base: import, mid-training with the paper's numbers, export; --tiny runs a miniature."""

from __future__ import annotations

from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.recipes.common import midtrain_recipe

MODEL = "ibm-granite/granite-3.3-8b-base"
# A node of eight GPUs; more nodes are more data parallelism: midtrain.parallel.data_parallel_size=N.
PARALLEL = ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=4, sequence_parallel=True)
TINY_PARALLEL = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)


def recipe(
    checkpoint: str = "", data: str = "", mixture: str = "mcs", seed: int = 1, tiny: bool = False
) -> Graph:
    """`checkpoint`: the model's Hugging Face folder; `data`: a folder or file per source of the mixture."""
    return midtrain_recipe(
        "granite-3-3-8b",
        MODEL,
        PARALLEL,
        TINY_PARALLEL,
        checkpoint=checkpoint,
        data=data,
        mixture=mixture,
        seed=seed,
        tiny=tiny,
    )
