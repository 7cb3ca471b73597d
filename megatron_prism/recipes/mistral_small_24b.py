"""Mistral-Small-24B-Base-2501: import, mid-training with the paper's numbers, export; --tiny runs a miniature."""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.recipes.common import midtrain_recipe
from megatron_prism.recipes.long_context import LongContext

recipe = midtrain_recipe(
    "mistral-small-24b",
    "mistralai/Mistral-Small-24B-Base-2501",
    # A node of eight GPUs; more nodes are more data parallelism: midtrain.parallel.data_parallel_size=N.
    parallel=ParallelConfig(tensor_model_parallel_size=8, data_parallel_size=1, sequence_parallel=True),
    tiny_parallel=ParallelConfig(pipeline_model_parallel_size=2),
    # 128k tokens on a node of eight GPUs.
    long_context=LongContext(
        ParallelConfig(tensor_model_parallel_size=8, sequence_parallel=True),
        # Mistral-Small-3.1's base, on which it has more positions.
        rope_theta=1e9,
    ),
)
