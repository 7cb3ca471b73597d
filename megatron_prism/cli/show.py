"""`prism run RECIPE --show`: the graph of a recipe, and the resolved config of its stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_prism.cli.output import shortened_inputs, show_line, show_table, write_result

if TYPE_CHECKING:
    from megatron_prism.pipeline.graph import Graph
    from megatron_prism.pipeline.node import Node

# A group of as many keys, such as an architecture, is shown once.
LONG_GROUP = 6


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
    rows = [[each.stage, shortened_inputs(each.inputs), each.layout, each.cost or "-"] for each in shown]
    show_table(json_file, f"{graph.name}: the graph", ["stage", "reads", "layout", "cost on H100"], rows)
    show_line(
        json_file,
        "cost: the planner's estimate (docs/planning.md) of stages that train or sample; evaluations have none",
    )
    for line in _configs(shown, everything):
        show_line(json_file, line)
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


def _configs(shown: Sequence[Shown], everything: bool) -> Iterator[str]:
    """The config of each stage; a long group of keys that an earlier stage has as well stands only there."""
    earlier: dict[tuple[str, str], str] = {}
    for each in shown:
        if each.config:
            yield f"{each.stage} ({each.kind}):"
        for group, values in _groups(each.config).items():
            known = (group, json.dumps(values, sort_keys=True))
            if not everything and len(values) >= LONG_GROUP and known in earlier:
                yield f"  {group}: as in {earlier[known]}"
                continue
            earlier.setdefault(known, each.stage)
            yield from (f"  {key}: {_text(value)}" for key, value in values.items())


def _groups(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The values by the first part of their key."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        groups.setdefault(key.partition(".")[0], {})[key] = value
    return groups


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
    number = "1 process" if stage.world_size == 1 else f"{stage.world_size} ranks"
    sizes = " ".join(parallel.short_sizes())
    # Sampling has no backward pass, and so nothing to recompute.
    recompute = getattr(stage, "recompute", "none")
    again = "" if recompute == "none" else f"recompute {recompute}"
    return ", ".join(each for each in (number, sizes, again) if each)


def stage_costs(nodes: Sequence[Node]) -> dict[str, str]:
    """What the planner expects the stages to take on H100 GPUs, by name; none for those that take no GPU."""
    from megatron_prism.planning.gpu_profile import load_profile
    from megatron_prism.study.stage_plans import Setting, plan_stages

    plans, _ = plan_stages(nodes, Setting(load_profile("h100")))
    return {each.name: f"{each.hours:,.1f} h, {each.gpu_hours:,.0f} GPU-h" for each in plans if each.gpus}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
