"""docs/costs.md: the whole study on paper, for every model, on one node and on the paper's numbers of GPUs.

    python -m megatron_prism.study.costs

writes the page. The layouts are those of recipes/layouts. A test compares the page with what this file computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from megatron_prism.planning.gpu_profile import load_profile
from megatron_prism.planning.stage_plan import GB, StagePlan
from megatron_prism.platform.source_tree import ROOT
from megatron_prism.rl.stage import Reinforce
from megatron_prism.study.layout_choice import LONGEST, published_recipes, with_layout
from megatron_prism.study.layouts import LayoutTable
from megatron_prism.study.registry import load_recipe
from megatron_prism.study.stage_plans import Setting, nodes_on_paper, plan_stages
from megatron_prism.training.stage import Train

PAGE = ROOT / "docs" / "costs.md"
# GPUs of mid-training and reinforcement learning, and of the extension to 128k tokens.
SCALES = ((8, 8), (128, 144))
HEAD = """# Costs

The whole study on paper: what each stage of each recipe takes on H100s of 80 GB. Nothing here has been measured; the
formulas and their assumptions are in [planning.md](planning.md), and how far they are from published figures is in
[results](results/planning.md): at 8k tokens the planner is about 10 % too fast. This page is written by
`python -m megatron_prism.study.costs`, with the layouts of `recipes/layouts`; `prism plan` does the same for other
GPUs, numbers and settings.

- GPU-hours = GPUs x (steps x seconds of a step + validation + checkpoints). Days = hours / 24, one stage after the
  other.
- Mid-training: 25,000 steps of 128 rows of 8,192 tokens (26.2B tokens). Extension: 1,000 steps of 9 rows of 128k tokens
  (1.18B tokens), full and attention only, from the mid-trained model and from the merge: four runs for the paper's
  Table 7.
- Reinforcement learning: 1,000 steps of 64 prompts with 16 answers, from the base and from the trained model: two runs.
  Answers of 3,000 tokens are an assumption, and nearly all of the time is decoding with 16 slots per replica, so hours
  grow with them.
- Difficulty: 16 answers to each of 536,000 prompts. On one GPU with 16 slots it would take thousands of hours; a server
  that batches hundreds of answers (`engine.name=openai`) takes a small part of that. It is not in the sums.
- RULER: seven models, five lengths, 13 tasks of 100 samples, on one GPU each.
- Disk: models and tokens that stay; "at most" adds the checkpoints of the largest running stage.
"""


@lru_cache(maxsize=32)
def plans_of(model: str, gpus: int, long_gpus: int) -> tuple[StagePlan, ...]:
    """All stages of the study with one model."""
    table = LayoutTable.load(model)
    recipe = load_recipe(model)
    nodes = nodes_on_paper(recipe, {"long_context": True, "rl": True})
    for node in nodes:
        stage = node.stage
        if isinstance(stage, Train):
            wanted = long_gpus if stage.batch.sequence_length == LONGEST else gpus
            node.stage = with_layout(stage, table, "train", _possible(table, "train", wanted, stage))
        elif isinstance(stage, Reinforce):
            node.stage = with_layout(stage, table, "rl", _possible(table, "rl", gpus, stage))
    return tuple(plan_stages(nodes, Setting(load_profile("h100")))[0])


def _possible(table: LayoutTable, kind: str, gpus: int, stage: Train | Reinforce) -> int:
    """`gpus`, or 16 where 8 are too few for the rows of the stage."""
    row = stage.batch.sequence_length if isinstance(stage, Train) else stage.context_length
    return gpus if any((kind, gpus) == key[:2] and key[2] >= row for key in table.entries) else 16


def page() -> str:
    """The text of docs/costs.md."""
    return "\n".join([HEAD, *_summary(), *_tables()])


def _summary() -> Iterator[str]:
    for gpus, long_gpus in SCALES:
        also = "" if gpus == long_gpus else f", extension on {long_gpus}"
        yield (
            f"## All models on {gpus} GPUs{also} (16 where 8 are too few)\n"
            if gpus == 8
            else f"## All models on {gpus} GPUs{also}\n"
        )
        yield "| model | mid-training | extensions | RL, two runs | RULER | GPU-hours | days | disk, TB | at most |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        for model in published_recipes():
            plans = [each for each in plans_of(model, gpus, long_gpus) if each.kind != "difficulty"]
            groups = {
                "midtrain": [each for each in plans if each.name == "midtrain"],
                "extend": [each for each in plans if each.kind == "train" and each.name != "midtrain"],
                "rl": [each for each in plans if each.kind == "rl"],
                "ruler": [each for each in plans if each.kind == "ruler"],
            }
            cells = [f"{sum(each.gpu_hours for each in group):,.0f}" for group in groups.values()]
            hours = sum(each.gpu_hours for each in plans)
            days = sum(each.hours for each in plans) / 24
            disk = sum(each.disk for each in plans)
            most = disk + max(each.disk_peak - each.disk for each in plans)
            yield (
                f"| {model} | {' | '.join(cells)} | {hours:,.0f} | {days:.1f} | {disk / GB / 1000:.2f} | "
                f"{most / GB / 1000:.2f} |"
            )
        yield ""


def _tables() -> Iterator[str]:
    yield "## Stages that train\n"
    yield "| model | stage | layout | GPUs | GB | seconds per step | tokens/s/GPU | MFU | hours | GPU-hours |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for gpus, long_gpus in SCALES:
        for model in published_recipes():
            yield from stage_lines(model, gpus, long_gpus)
    yield ""


def stage_lines(model: str, gpus: int, long_gpus: int) -> Iterator[str]:
    """The lines of a model's stages that train."""
    gpu = load_profile("h100")
    for plan in plans_of(model, gpus, long_gpus):
        if plan.step is None or plan.memory is None:
            continue
        mfu = plan.mfu(gpu)
        share = "" if mfu is None or plan.kind == "rl" else f"{mfu:.0%}"
        yield (
            f"| {model} | {plan.name} | {plan.layout} | {plan.gpus} | {plan.memory.total / GB:.1f} | "
            f"{plan.step.seconds:.2f} | {plan.step.tokens_per_second:,.0f} | {share} | {plan.hours:,.1f} | "
            f"{plan.gpu_hours:,.0f} |"
        )


def main() -> None:
    Path(PAGE).write_text(page())


if __name__ == "__main__":
    main()
