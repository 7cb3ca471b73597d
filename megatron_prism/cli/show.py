"""`prism run RECIPE --show`: the graph of a recipe, and the resolved config of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_prism.cli.output import show_line, show_table, write_result

if TYPE_CHECKING:
    from megatron_prism.pipeline.graph import Graph
    from megatron_prism.pipeline.node import Node


@dataclass(frozen=True)
class Shown:
    """What `--show` says about one stage; `cost` is empty for a stage that needs no estimate."""

    stage: str
    kind: str
    inputs: dict[str, str]
    layout: str
    cost: str
    config: dict[str, Any]


def show_graph(
    graph: Graph, nodes: Sequence[Node], *, everything: bool = False, json_file: str | None = None
) -> None:
    """Print the stages in order with their inputs, layout and cost, and then the config of each.

    Args:
        nodes: the stages to show.
        everything: all values instead of those that differ from the defaults of a stage.
    """
    costs = stage_costs(nodes)
    shown = [_shown(node, everything, costs.get(node.name, "")) for node in nodes]
    rows = [[each.stage, each.kind, _inputs(each.inputs), each.layout, each.cost or "-"] for each in shown]
    show_table(
        json_file, f"{graph.name}: the graph", ["stage", "kind", "inputs", "layout", "cost on H100"], rows
    )
    for each in shown:
        if each.config:
            show_line(json_file, f"{each.stage}:")
        for key, value in each.config.items():
            show_line(json_file, f"  {key}: {_text(value)}")
    show_absent(graph, json_file)
    write_result(
        json_file,
        {
            "recipe": graph.name,
            "parameters": graph.parameters,
            "needs": list(graph.absent),
            "stages": [vars(each) for each in shown],
        },
    )


def show_absent(graph: Graph, json_file: str | None) -> None:
    """Say which parameters a real run needs, if any has no value yet."""
    if graph.absent:
        names = ", ".join(f"{name}=" for name in graph.absent)
        show_line(json_file, f"a real run also needs: {names} (docs/recipes.md)")


def _shown(node: Node, everything: bool, cost: str) -> Shown:
    from megatron_prism.pipeline.config import changed_fields, flat, to_mapping

    config = flat(to_mapping(node.stage)) if everything else changed_fields(node.stage)
    inputs = {key: parent.name for key, parent in node.inputs.items()}
    return Shown(node.name, node.stage.kind, inputs, _layout(node.stage), cost, config)


def _layout(stage: Any) -> str:
    parallel = getattr(stage, "parallel", None)
    if parallel is None:
        return "1 process"
    noun = "process" if stage.world_size == 1 else "processes"
    return ", ".join([*parallel.short_sizes(), f"{stage.world_size} {noun}", f"recompute {stage.recompute}"])


def stage_costs(nodes: Sequence[Node]) -> dict[str, str]:
    """What the planner expects the stages to take on H100 GPUs, by name; none for those that take no GPU."""
    from megatron_prism.planning.gpu_profile import load_profile
    from megatron_prism.study.stage_plans import Setting, plan_stages

    plans, _ = plan_stages(nodes, Setting(load_profile("h100")))
    return {each.name: f"{each.hours:.1f} h, {each.gpu_hours:.0f} GPU-h" for each in plans if each.gpus}


def _inputs(inputs: dict[str, str]) -> str:
    """The stages that are read, each once; a report reads nearly all."""
    names = list(dict.fromkeys(inputs.values()))
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} stages"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
