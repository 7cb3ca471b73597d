"""Granite-4.0-H-Micro: import, mid-training, long context, RL, evaluation, export; --tiny runs a miniature.

docs/recipes.md explains the parameters. Layouts: layouts/granite-4.0-h-micro.yaml.
"""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.model_recipe import ModelRecipe

recipe = ModelRecipe(
    name="granite-4.0-h-micro",
    model="ibm-granite/granite-4.0-h-micro-base",
    # Table 16 of the paper, which gives no other rate for any model.
    learning_rate=5e-5,
    # The model has one Mamba group, which tensor parallelism cannot split.
    tiny_parallel=ParallelConfig(context_parallel_size=2),
)
