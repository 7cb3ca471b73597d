"""Granite-4.0-Micro: import, mid-training, long context, RL, evaluation, export; --tiny runs a miniature.

docs/recipes.md explains the parameters. Layouts: layouts/granite-4.0-micro.yaml.
"""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.model_recipe import ModelRecipe

recipe = ModelRecipe(
    name="granite-4.0-micro",
    model="ibm-granite/granite-4.0-micro-base",
    # Table 16 of the paper, which gives no other rate for any model.
    learning_rate=5e-5,
    tiny_parallel=ParallelConfig(data_parallel_size=2),
)
