"""`prism plan RECIPE[:STAGE] [key=value ...]`: memory, time and disk of a recipe, on paper and without a GPU."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError


def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE[:STAGE]", help="Name of a recipe, or a .py file; with :STAGE, one stage."
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", metavar="N", help="Search the best layout for N GPUs; default: the stage's own."
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu", metavar="NAME", help="a100, b200, gb200, h100, h100-500w, h200, or a YAML file."
        ),
    ] = "h100",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where every gigabyte and every second goes.")
    ] = False,
    choose_layouts: Annotated[
        bool, typer.Option("--choose-layouts", help="Write recipes/layouts/RECIPE.yaml by the search.")
    ] = False,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", metavar="N", help="Mean tokens of a sampled answer.")
    ] = 3000,
    disk_gb_per_second: Annotated[
        float, typer.Option("--disk", metavar="GB/S", help="Speed of the shared file system.")
    ] = 2.0,
    json_file: JsonOption = None,
) -> None:
    """Plan a recipe on paper: does it fit, how long does it take, how much disk does it need."""
    check_json_target(json_file)
    for name, value in (("--gpus", gpus), ("--answer-tokens", answer_tokens), ("--disk", disk_gb_per_second)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name} {value}: must be above 0")
    from megatron_prism.cli.run import split_target
    from megatron_prism.planning.gpu_profile import load_profile

    profile = load_profile(gpu)
    name, target = split_target(recipe)
    if choose_layouts:
        _choose_layouts(name)
        return
    from megatron_prism.pipeline.config import parse_override
    from megatron_prism.planning.memory import GB
    from megatron_prism.rl.planned import Lengths
    from megatron_prism.study.registry import load_recipe
    from megatron_prism.study.stage_plans import Setting, nodes_on_paper, plan_stages

    loaded = load_recipe(name)
    values = dict(parse_override(text) for text in overrides or [])
    nodes = nodes_on_paper(loaded, values, target)
    setting = Setting(profile, gpus, disk_gb_per_second * GB, Lengths(answer=answer_tokens))
    plans, searches = plan_stages(nodes, setting)
    plans = [each for each in plans if target in (None, each.name)]
    from megatron_prism.cli.plan_view import COLUMNS, memory_chart, search_tables, stage_rows, time_chart
    from megatron_prism.platform.console import console, results

    screen = console if json_file == "-" else results
    title = (
        f"{loaded.name} on {profile.title}; MFU of the bf16 peak, {profile.peak['bf16'] / 1e12:.0f} TFLOP/s"
    )
    show_table(json_file, title, COLUMNS, stage_rows(plans, profile))
    for each in plans:
        if explain and each.memory is not None:
            screen.print(memory_chart(f"{each.name}: the memory of the fullest GPU", each.memory, profile))
        if explain and each.step is not None:
            screen.print(time_chart(f"{each.name}: one step", each.step.parts))
    # A remark that several stages have is shown once, with their names.
    remarks: dict[str, list[str]] = {}
    for each in plans:
        for remark in each.remarks:
            remarks.setdefault(remark, []).append(each.name)
    for remark, names in remarks.items():
        show_line(json_file, f"{', '.join(names)}: {remark}")
    for stage, found in searches.items():
        if target in (None, stage) and (explain or target is not None):
            for shown in search_tables(stage, found, profile):
                screen.print(shown)
    write_result(
        json_file, _as_json(loaded.name, profile.name, [each.to_json(profile) for each in plans], searches)
    )


def _as_json(recipe: str, gpu: str, stages: list[dict[str, Any]], searches: dict[str, Any]) -> dict[str, Any]:
    found = {
        name: {
            "ranked": [
                {
                    "layout": each.option.describe(),
                    "total_gb": each.memory.total / 1e9,
                    "tokens_per_second_per_gpu": each.time.tokens_per_second,
                }
                for each in search.ranked[:20]
            ],
            "refused": {each.example: each.count for each in search.refused.values()},
        }
        for name, search in searches.items()
    }
    return {"recipe": recipe, "gpu": gpu, "stages": stages, "searches": found}


def _choose_layouts(name: str) -> None:
    from megatron_prism.errors import suggest
    from megatron_prism.platform.source_tree import recipes_folder
    from megatron_prism.study.layout_choice import choose, file_text, published_recipes

    if name not in published_recipes():
        raise ConfigError(
            f"--choose-layouts: no published model's recipe is called '{name}'{suggest(name, published_recipes())}"
        )
    found, missing = choose(name)
    folder = recipes_folder() / "layouts"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(file_text(name, found, missing))
    show_line(None, str(folder / f"{name}.yaml"))
