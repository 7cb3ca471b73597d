"""Which pipeline stage gets how many layers: `parallel.split=balanced`, from the FLOPs of each layer.

Megatron-Core gives each stage as many layers, but for the first and the last one, whose numbers can be set. A pipeline
is as fast as its slowest stage, and stages differ: the last one has the output layer, and a hybrid has layers of three
kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.flops import flops_of_layers, flops_of_output
from megatron_prism.platform.process_groups import ParallelConfig

# A pass computed again costs a third more than the three of forward and backward.
AGAIN = 4 / 3


def with_split(
    architecture: Architecture, parallel: ParallelConfig, sequence_length: int, recompute: str
) -> ParallelConfig:
    """`parallel` with the numbers of layers that `split=balanced` stands for; other layouts stay as they are.

    Of all splits that Megatron can do, it has the one whose slowest stage is fastest.

    Raises:
        ParallelError: if there are fewer layers than stages, or no split that virtual stages divide.
    """
    if parallel.split != "balanced":
        return parallel
    splits = [
        replace(parallel, split="even", layers_in_first_stage=first, layers_in_last_stage=last)
        for first, last in _ends(architecture.num_layers, parallel)
    ]
    if not splits:
        virtual = parallel.virtual_pipeline_model_parallel_size
        chunks = f" of {virtual} virtual stages each" if virtual else ""
        raise ParallelError(
            f"split=balanced: {architecture.num_layers} layers cannot be split over "
            f"{parallel.pipeline_model_parallel_size} pipeline stages{chunks}; use fewer stages"
        )

    def badness(split: ParallelConfig) -> tuple[float, float]:
        costs = stage_costs(architecture, split, sequence_length, recompute)
        return max(costs), sum(cost**2 for cost in costs)

    return min(splits, key=badness)


def _ends(layers: int, parallel: ParallelConfig) -> Iterator[tuple[int, int]]:
    """Numbers of layers of the first and the last stage that leave equal numbers for the stages between."""
    between = parallel.pipeline_model_parallel_size - 2
    step = parallel.virtual_pipeline_model_parallel_size or 1
    for first in range(step, layers, step):
        for last in range(step, layers - first + 1, step):
            rest = layers - first - last
            if rest % (between * step) == 0 and rest if between else rest == 0:
                yield first, last


def stage_costs(
    architecture: Architecture, parallel: ParallelConfig, sequence_length: int, recompute: str
) -> list[float]:
    """Training FLOPs per token of each pipeline stage.

    The embedding is a lookup and costs nothing. The output layer computes its logits again in the backward pass; with
    recompute=full, layers do so, too.
    """
    costs, start = [], 0
    kinds = architecture.kinds_of_layers
    of_kind = {kind: flops_of_layers(architecture, [kind], sequence_length) for kind in set(kinds)}
    for count in parallel.layers_per_stage(architecture.num_layers):
        cost = sum(kinds[start : start + count].count(kind) * each for kind, each in of_kind.items())
        costs.append(cost * (AGAIN if recompute == "full" else 1))
        start += count
    costs[-1] += flops_of_output(architecture) * AGAIN
    return costs


def describe_split(
    architecture: Architecture, parallel: ParallelConfig, sequence_length: int, recompute: str
) -> str:
    """One line for a reader: the layers of each stage, and how much slower the slowest one is than the mean."""
    layers = parallel.layers_per_stage(architecture.num_layers)
    costs = stage_costs(architecture, parallel, sequence_length, recompute)
    above = max(costs) * len(costs) / sum(costs) - 1
    numbers = ", ".join(map(str, layers))
    return f"pipeline stages of {numbers} layers; the largest has {above:.0%} more work than the mean"
