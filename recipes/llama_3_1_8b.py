"""LLaMA-3.1-8B: import, mid-training with the paper's numbers, export; --tiny runs a miniature.

With long_context=true its long context is restored (merge, extension to 128k tokens, RULER); with rl=true reinforcement
learning follows. docs/recipes.md explains the parameters.
"""

from __future__ import annotations

from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.long_context import MIXTURE as LONG_MIXTURE
from megatron_prism.study.long_context import LongContext, add_long_context
from megatron_prism.study.midtraining import (
    add_midtraining,
    add_tiny_midtraining,
    finish,
    miniature,
    published_model,
)
from megatron_prism.study.reinforcement import add_study_reinforcement, paper_branch, tiny_branch
from megatron_prism.verification.sandbox.isolation import STRONG

MODEL = "meta-llama/Llama-3.1-8B"
# Table 16 of the paper.
STEPS, LEARNING_RATE = 25_000, 5e-5
# Layouts on a node of eight GPUs; more nodes are more data parallelism: midtrain.parallel.data_parallel_size=N.
PARALLEL = ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=4, sequence_parallel=True)
# To 128k tokens.
LONG_CONTEXT = LongContext(
    ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=4, sequence_parallel=True)
)
TINY_PARALLEL = ParallelConfig(tensor_model_parallel_size=2)


def recipe(
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
    graph = Graph("llama-3.1-8b")
    if tiny:
        start = miniature(graph, MODEL, seed)
        trained = midtrain = add_tiny_midtraining(graph, start, TINY_PARALLEL, seed)
    else:
        mixtures = [mixture, LONG_MIXTURE] if long_context else [mixture]
        start = published_model(graph, MODEL, checkpoint, data, mixtures)
        trained = midtrain = add_midtraining(graph, start, mixture, STEPS, LEARNING_RATE, PARALLEL, seed)
    if long_context:
        trained = add_long_context(graph, start, midtrain, LONG_CONTEXT, seed, tiny)
    if rl:
        branch = (
            tiny_branch(start.architecture, TINY_PARALLEL, seed, method, sandbox)
            if tiny
            else paper_branch(start.architecture, PARALLEL, seed, prompts, method, sandbox)
        )
        trained = add_study_reinforcement(graph, branch, start, midtrain, trained)
    return finish(graph, MODEL, trained, tiny)
