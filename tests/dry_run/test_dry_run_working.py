"""The planner's estimate of what a backward pass needs at a time, against the deep dry run of published models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from parallel_runs import layout

from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.planning.memory import stage_memory
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.dry_run import buildable, dry_run_rank
from megatron_prism.training.dry_step import comparable
from megatron_prism.training.memory import train_workload
from megatron_prism.training.stage import Train

DENSE, HYBRID = "meta-llama/Llama-3.1-8B", "nvidia/Nemotron-H-8B-Base-8K"
# Of each model, so that a case takes a second.
LAYERS = 12
# Model, layout, recompute, and the other mode that the comparison must tell from it.
CASES = {
    "dense": (DENSE, layout(tp=2, pp=2, dp=4, sp=True), "none", "full"),
    "dense, recomputed": (DENSE, layout(tp=2, pp=2, dp=4, sp=True), "full", "none"),
    "hybrid": (HYBRID, layout(tp=2, pp=2, dp=4, sp=True), "none", "full"),
    "hybrid, context": (HYBRID, layout(cp=4, pp=2), "full", "none"),
}


@pytest.mark.parametrize("name", CASES)
def test_working_memory_is_of_the_right_size(name):
    """On the first stage, where no loss covers it."""
    model, parallel, recompute, other = CASES[name]
    batch = BatchConfig(8192, 1, 4 * parallel.data_parallel_size)
    whole = architecture_from_config(published_config(model))
    pattern = whole.hybrid_pattern and whole.hybrid_pattern[:LAYERS]
    architecture = replace(whole, num_layers=LAYERS, hybrid_pattern=pattern)
    stage = Train(architecture, "mcs", dtype="bf16", batch=batch, parallel=parallel, recompute=recompute)
    config, _ = buildable(stage)
    counted = dry_run_rank(config, 0).counted
    work = train_workload(config)
    planned = comparable(stage_memory(architecture, config.layout, work, 0))
    ratio = counted["working"] / planned["working"]
    assert 0.75 < ratio < 1.3, ratio
    assert counted["total"] == pytest.approx(planned["total"], rel=0.03)
    # Negative control: of the other mode it would be further off.
    wrong = stage_memory(architecture, config.layout, replace(work, recompute=other), 0).working
    assert abs(counted["working"] / wrong - 1) > abs(ratio - 1)
