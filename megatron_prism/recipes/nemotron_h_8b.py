"""Nemotron-H-8B-Base-8K: import, mid-training with the paper's numbers, export; --tiny runs a miniature."""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.recipes.common import midtrain_recipe
from megatron_prism.recipes.long_context import LongContext

recipe = midtrain_recipe(
    "nemotron-h-8b",
    "nvidia/Nemotron-H-8B-Base-8K",
    # A node of eight GPUs; more nodes are more data parallelism: midtrain.parallel.data_parallel_size=N.
    parallel=ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=4, sequence_parallel=True),
    tiny_parallel=ParallelConfig(tensor_model_parallel_size=2),
    # 128k tokens on a node of eight GPUs.
    long_context=LongContext(
        ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=4, sequence_parallel=True)
    ),
)
