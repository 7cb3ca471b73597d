"""`prism recipes`: list the recipes."""

from __future__ import annotations

from megatron_prism.cli.output import JsonOption, check_json_target, show_table, write_result


def recipes(json_file: JsonOption = None) -> None:
    """List the recipes that come with the package."""
    check_json_target(json_file)
    from megatron_prism.study.registry import list_recipes

    found = list_recipes()
    show_table(json_file, "recipes", ["name", "what it does"], list(found.items()))
    write_result(json_file, [{"name": name, "description": line} for name, line in found.items()])
