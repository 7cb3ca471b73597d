"""Nemotron-H-8B-Base-8K: import, mid-training, long context, RL, evaluation, export; --tiny runs a miniature.

docs/recipes.md explains the parameters. Layouts: layouts/nemotron-h-8b.yaml.
"""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.model_recipe import ModelRecipe

recipe = ModelRecipe(
    name="nemotron-h-8b",
    model="nvidia/Nemotron-H-8B-Base-8K",
    # Table 16 of the paper, which gives no other rate for any model.
    learning_rate=5e-5,
    tiny_parallel=ParallelConfig(tensor_model_parallel_size=2),
)
