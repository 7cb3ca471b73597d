"""`prism recipes [NAME]`: list the recipes with their models, or say what one takes, needs and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_prism.cli.output import (
    JsonOption,
    check_json_target,
    shortened_inputs,
    show_line,
    show_table,
    write_result,
)

if TYPE_CHECKING:
    from megatron_prism.study.layouts import Layout
    from megatron_prism.study.overview import Overview
    from megatron_prism.study.registry import Recipe


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this recipe's parameters, files and stages."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """List the recipes that come with the package, or show the parameters, files and stages of one."""
    check_json_target(json_file)
    from megatron_prism.study.overview import overview
    from megatron_prism.study.registry import list_recipes, load_recipe

    if name is not None:
        _show_one(load_recipe(name), json_file)
        return
    found = list_recipes()
    shown = [overview(load_recipe(each)) for each in found]
    columns = ["name", "family", "params", "layers", "attn", "Mamba", "GPUs"]
    show_table(json_file, "recipes", columns, [_row(each) for each in shown])
    phases = ", ".join(dict.fromkeys(phase for each in shown for phase in each.phases))
    show_line(
        json_file,
        f"Published models have phases that a parameter adds, as in long_context=true: {phases}. GPUs: those with "
        "layouts, some only for 128k tokens.",
    )
    show_line(
        json_file, "`prism recipes NAME` shows one recipe, `prism run NAME --show` its config and cost."
    )
    write_result(json_file, [vars(each) | {"description": found[each.name]} for each in shown])


def _row(each: Overview) -> list[Any]:
    return [
        each.name,
        each.family,
        _size(each.parameters),
        each.layers,
        each.attention,
        each.mamba,
        " ".join(map(str, each.gpus)) or "-",
    ]


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e7 else f"{parameters / 1e6:.1f} M"


def _show_one(recipe: Recipe, json_file: str | None) -> None:
    from megatron_prism.study.layouts import LayoutTable
    from megatron_prism.study.model_recipe import ModelRecipe
    from megatron_prism.study.overview import overview, stages_by_phase

    about = overview(recipe)
    graph, phases = stages_by_phase(recipe)
    if about.family:
        pattern = (
            f"{about.attention} with attention, {about.mamba} Mamba" if about.mamba else "all with attention"
        )
        model = f"{about.model}: " if about.model else ""
        size = _size(about.parameters)
        show_line(json_file, f"{model}{about.family}, {size} parameters, {about.layers} layers ({pattern})")
    parameters = [
        [key, _text(default), recipe.notes.get(key, type(default).__name__)]
        for key, default in recipe.parameters.items()
    ]
    show_table(json_file, f"{recipe.name}: parameters", ["parameter", "default", "what it does"], parameters)
    stages = [
        [
            node.name,
            node.stage.kind,
            phases[node.name],
            shortened_inputs({key: parent.name for key, parent in node.inputs.items()}),
        ]
        for node in graph.nodes.values()
    ]
    show_table(json_file, f"{recipe.name}: stages", ["stage", "kind", "with", "reads"], stages)
    if isinstance(recipe.function, ModelRecipe):
        table = LayoutTable.load(recipe.function.name)
        rows = [_layout_row(key, layout) for key, layout in table.entries.items()]
        show_table(json_file, "layouts", ["of", "GPUs", "tokens of a row", "layout", "recompute"], rows)
    for key, message in graph.absent.items():
        show_line(json_file, f"needs {key}: {message.removeprefix(f'{key}: ')}")
    sources = _sources(graph)
    if sources:
        show_line(json_file, f"data has these sources: {', '.join(sources)}")
    write_result(
        json_file,
        vars(about)
        | {
            "options": {
                key: {"default": recipe.parameters[key], "note": note} for key, _, note in parameters
            },
            "stages": [dict(zip(("stage", "kind", "with"), row[:3], strict=True)) for row in stages],
            "needs": dict(graph.absent),
            "sources": sources,
        },
    )


def _layout_row(key: tuple[str, int, int], layout: Layout) -> list[Any]:
    kind, gpus, tokens = key
    micro = f", {layout.micro_batch_size} rows at once" if layout.micro_batch_size > 1 else ""
    return [kind, gpus, tokens, " ".join(layout.parallel.short_sizes()) + micro, layout.recompute]


def _sources(graph: Any) -> list[str]:
    corpus = graph.nodes.get("corpus")
    return list(getattr(corpus.stage, "sources", {})) if corpus is not None else []


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
