"""Mistral-7B-v0.1: import, mid-training, long context, RL, evaluation, export; --tiny runs a miniature.

docs/recipes.md explains the parameters. Layouts: layouts/mistral-7b-v0.1.yaml.
"""

from __future__ import annotations

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.model_recipe import ModelRecipe

recipe = ModelRecipe(
    name="mistral-7b-v0.1",
    model="mistralai/Mistral-7B-v0.1",
    # Table 16 of the paper, which gives no other rate for any model.
    learning_rate=5e-5,
    # Mistral-7B-v0.2 has more positions, with this rotary base.
    rope_theta=1e6,
    tiny_parallel=ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
)
