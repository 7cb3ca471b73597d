"""`prism run RECIPE[:STAGE] [key=value ...]`: run the stages of a recipe whose artifacts do not exist yet.

A key that is a parameter of the recipe sets that parameter, and `STAGE.key` sets a field of that stage. With
`RECIPE:STAGE`, any other key sets a field of STAGE.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.dry_run import deep_dry_run
from megatron_prism.cli.output import JsonOption, check_json_target, show_line
from megatron_prism.cli.run_graph import RunOptions, run_graph
from megatron_prism.cli.show import show_graph
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.pipeline.graph import Graph
    from megatron_prism.study.registry import Recipe


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE[:STAGE]",
            help="Name of a recipe, or a .py file; with :STAGE, run only up to that stage.",
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", metavar="DIR", help="Folder for the artifacts; default runs/RECIPE."),
    ] = None,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run STAGE again, and all stages that depend on it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run STAGE (or all stages) even if done.")] = False,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Run the small variant, if the recipe has one; same as tiny=true.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", metavar="N", help="How many processes run stages in parallel; default: the recipe's."
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", metavar="N", help="How often a stage that loses a process is started again."
        ),
    ] = 0,
    profile: Annotated[
        list[int] | None,
        typer.Option(
            "--profile", metavar="STEP", help="Trace STEP of STAGE; same as logging.profile_steps=[STEP]."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the stages without running them; --dry-run=deep also builds and steps every rank that differs, "
            "without memory.",
        ),
    ] = False,
    dry_run_deep: Annotated[bool, typer.Option("--dry-run-deep", hidden=True)] = False,
    ranks: Annotated[
        str | None,
        typer.Option("--ranks", metavar="0,5,127", help="The ranks that --dry-run=deep builds."),
    ] = None,
    executor: Annotated[
        Path | None,
        typer.Option(
            "--executor", metavar="FILE", help="Run each stage as a job, on what this file describes."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="With --executor: submit, and do not wait for the jobs.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show the graph, layouts and changed values instead of running.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="With --show: all values of all stages.")] = False,
    to_yaml: Annotated[
        Path | None,
        typer.Option(
            "--to-yaml", metavar="FILE", help="Write every resolved value to FILE instead of running."
        ),
    ] = None,
    from_yaml: Annotated[
        Path | None,
        typer.Option("--from-yaml", metavar="FILE", help="Run what FILE says; KEY=VALUE wins over it."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Run the stages of a recipe (up to STAGE, if given), except those that are done."""
    check_json_target(json_file)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: must be at least 1")
    if max_restarts < 0:
        raise ConfigError(f"--max-restarts {max_restarts}: must be at least 0")
    from megatron_prism.platform.console import setup_logging
    from megatron_prism.study.registry import load_recipe

    setup_logging()
    name, target = split_target(recipe)
    loaded = load_recipe(name)
    if profile and target is None:
        raise ConfigError(f"--profile {profile[0]}: name the stage whose step is traced, as RECIPE:STAGE")
    traced = [f"{target}.logging.profile_steps={profile}"] if profile else []
    settings = [*(overrides or []), *(["tiny=true"] if tiny else []), *traced]
    if ranks is not None and not dry_run_deep:
        raise ConfigError(f"--ranks {ranks}: only --dry-run=deep builds single ranks; add it")
    if everything and not show:
        raise ConfigError("--all: only --show prints values; add it")
    # A laptop that has neither weights nor text can show and plan a recipe, but not run it.
    planned = dry_run or dry_run_deep or show or to_yaml is not None
    graph = build_graph(loaded, target, settings, planned=planned, from_yaml=from_yaml)
    if target is not None:
        graph.node(target)
    if to_yaml is not None:
        from megatron_prism.study.saved_config import save

        save(to_yaml, loaded, graph)
        show_line(json_file, f"written: {to_yaml}")
    if dry_run_deep:
        deep_dry_run(graph, target, ranks=ranks, json_file=json_file)
        return
    if show:
        show_graph(graph, graph.needed(target), everything=everything, json_file=json_file)
        return
    if to_yaml is not None and not dry_run:
        return
    if detach and executor is None:
        raise ConfigError("--detach: name the executor file as well, with --executor FILE")
    options = RunOptions(
        run_dir or Path("runs") / loaded.name,
        target=target,
        from_stage=from_stage,
        force=force,
        jobs=jobs,
        max_restarts=max_restarts,
        executor=executor,
        detach=detach,
        dry_run=dry_run,
        json_file=json_file,
    )
    run_graph(graph, loaded.name, options)


def split_target(text: str) -> tuple[str, str | None]:
    """'shoebox:midtrain' -> ('shoebox', 'midtrain'); 'shoebox' -> ('shoebox', None)."""
    name, colon, stage = text.rpartition(":")
    if not colon:
        return text, None
    if not name or not stage:
        raise ConfigError(f"'{text}': expected RECIPE or RECIPE:STAGE, for example shoebox:midtrain")
    return name, stage


def build_graph(
    recipe: Recipe,
    target: str | None,
    overrides: list[str],
    *,
    planned: bool = False,
    from_yaml: Path | None = None,
) -> Graph:
    """The recipe's graph with `overrides` ('key=value'), by the rules in the docstring of this module.

    Args:
        planned: placeholders stand for paths without a value (see `Recipe.build`).
        from_yaml: a file of `--to-yaml`, over which the overrides win.

    Raises:
        ConfigError: for an unknown key, or a value that is not allowed.
    """
    from megatron_prism.pipeline.config import parse_override

    values = dict(parse_override(text) for text in overrides)
    if from_yaml is None:
        return recipe.graph(values, target, planned)
    from megatron_prism.study.saved_config import restore

    return restore(from_yaml, recipe, values, target=target, planned=planned)
