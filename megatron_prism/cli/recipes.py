"""`prism recipes [NAME]`: list the recipes, or show the stages of one."""

from __future__ import annotations

from typing import Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_table, write_result
from megatron_prism.cli.show import show_graph


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this recipe, as `prism run NAME --show`.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """List the recipes that come with the package, or show the stages of one."""
    check_json_target(json_file)
    from megatron_prism.study.registry import list_recipes, load_recipe

    if name is not None:
        graph = load_recipe(name).graph({}, planned=True)
        show_graph(graph, graph.needed(None), json_file=json_file)
        return
    found = list_recipes()
    show_table(json_file, "recipes", ["name", "what it does"], list(found.items()))
    write_result(json_file, [{"name": name, "description": line} for name, line in found.items()])
