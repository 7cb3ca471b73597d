"""Granite-3.3-8B-base: import, mid-training, long context, RL, evaluation, export; --tiny runs a miniature.

docs/recipes.md explains the parameters. Layouts: layouts/granite-3.3-8b.yaml.
"""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.model_recipe import ModelRecipe

recipe = ModelRecipe(
    name="granite-3.3-8b",
    model="ibm-granite/granite-3.3-8b-base",
    # Table 16 of the paper, which gives no other rate for any model.
    learning_rate=5e-5,
    tiny_parallel=ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
)
