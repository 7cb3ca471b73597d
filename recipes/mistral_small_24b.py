"""Mistral-Small-24B-Base-2501: import, mid-training with the paper's numbers, export; --tiny runs a miniature.

long_context=true adds the restoration of the long context (merge, extension to 128k tokens, RULER), and rl=true adds
reinforcement learning. docs/recipes.md explains the parameters.
"""

from __future__ import annotations

from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.long_context import MIXTURE as LONG_MIXTURE
from megatron_prism.study.long_context import LongContext, add_long_context
from megatron_prism.study.midtraining import (
    add_export_and_report,
    add_midtraining,
    add_tiny_midtraining,
    miniature,
    published_model,
)
from megatron_prism.study.reinforcement import add_study_reinforcement, paper_rl_stages, tiny_rl_stages
from megatron_prism.verification.sandbox.isolation import STRONG

MODEL = "mistralai/Mistral-Small-24B-Base-2501"
# Table 16 of the paper.
STEPS, LEARNING_RATE = 25_000, 5e-5
# The layouts are for a node of eight GPUs. For more nodes, set midtrain.parallel.data_parallel_size=N.
PARALLEL = ParallelConfig(tensor_model_parallel_size=8, sequence_parallel=True)
# The extension to 128k tokens, on two nodes: on one, the optimizer leaves too little memory (docs/training.md).
LONG_CONTEXT = LongContext(
    ParallelConfig(tensor_model_parallel_size=8, context_parallel_size=2, sequence_parallel=True),
    # Mistral-Small-3.1 has more positions, with this rotary base.
    rope_theta=1e9,
)
TINY_PARALLEL = ParallelConfig(pipeline_model_parallel_size=2)


def recipe(
    *,
    checkpoint: str = "",
    data: str = "",
    mixture: str = "mcs",
    seed: int = 1,
    tiny: bool = False,
    long_context: bool = False,
    rl: bool = False,
    prompts: str = "",
    method: str = "paper",
    sandbox: str = STRONG,
) -> Graph:
    graph = Graph("mistral-small-24b")
    if tiny:
        inputs = miniature(graph, MODEL, seed)
        trained = midtrain = add_tiny_midtraining(graph, inputs, TINY_PARALLEL, seed)
    else:
        mixtures = [mixture, LONG_MIXTURE] if long_context else [mixture]
        inputs = published_model(graph, MODEL, checkpoint=checkpoint, data=data, mixtures=mixtures)
        trained = midtrain = add_midtraining(
            graph,
            inputs,
            mixture,
            steps=STEPS,
            learning_rate=LEARNING_RATE,
            parallel=PARALLEL,
            seed=seed,
        )
    if long_context:
        trained = add_long_context(graph, inputs, midtrain, long_context=LONG_CONTEXT, seed=seed, tiny=tiny)
    if rl:
        stages = (
            tiny_rl_stages(
                inputs.architecture, parallel=TINY_PARALLEL, seed=seed, method=method, sandbox=sandbox
            )
            if tiny
            else paper_rl_stages(
                inputs.architecture,
                parallel=PARALLEL,
                seed=seed,
                prompts=prompts,
                method=method,
                sandbox=sandbox,
            )
        )
        trained = add_study_reinforcement(graph, stages, inputs, midtrain=midtrain, trained=trained)
    return add_export_and_report(graph, MODEL, trained, tiny)
