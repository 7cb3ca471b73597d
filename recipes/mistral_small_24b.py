"""Mistral-Small-24B-Base-2501: import, mid-training, long context, RL, evaluation, export; --tiny runs a miniature.

docs/recipes.md explains the parameters. Layouts: layouts/mistral-small-24b.yaml.
"""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.model_recipe import ModelRecipe

recipe = ModelRecipe(
    name="mistral-small-24b",
    model="mistralai/Mistral-Small-24B-Base-2501",
    # Table 16 of the paper, which gives no other rate for any model.
    learning_rate=5e-5,
    # Mistral-Small-3.1 has more positions, with this rotary base.
    rope_theta=1e9,
    tiny_parallel=ParallelConfig(pipeline_model_parallel_size=2),
)
