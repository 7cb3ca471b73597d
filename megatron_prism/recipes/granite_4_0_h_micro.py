"""Granite-4.0-H-Micro: import, mid-training with the paper's numbers, export; --tiny runs a miniature."""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.recipes.common import midtrain_recipe
from megatron_prism.recipes.long_context import LongContext

# One Mamba group: tensor parallelism cannot cut it, context and data parallelism can.
recipe = midtrain_recipe(
    "granite-4.0-h-micro",
    "ibm-granite/granite-4.0-h-micro-base",
    # A node of eight GPUs; more nodes are more data parallelism: midtrain.parallel.data_parallel_size=N.
    parallel=ParallelConfig(context_parallel_size=2, data_parallel_size=4),
    tiny_parallel=ParallelConfig(context_parallel_size=2),
    # 128k tokens on a node of eight GPUs.
    long_context=LongContext(ParallelConfig(context_parallel_size=8)),
)
