"""A recipe on nemo-run's own command line, with its overrides, `--to-yaml` and so on.

    python examples/nemo_run_cli.py recipe=shoebox stage=tokens executor=recipes/executors/local.yaml folder=runs/cli \\
        overrides="['tiny=true']" --yes
"""

# No `from __future__ import annotations` here: nemo-run reads the types of the arguments and not their names.
import nemo_run as run

from megatron_prism.study.nemo_recipes import command_line, recipe_experiment


@run.cli.entrypoint(type="experiment")
def study(
    ctx: run.cli.RunContext,
    *,
    recipe: str = "shoebox",
    stage: str = "",
    executor: str = "recipes/executors/local.yaml",
    folder: str = "",
    overrides: list[str] = [],  # noqa: B006
) -> None:
    """Run the stages of a recipe that are not done.

    Args:
        folder: the run folder. (nemo-run takes every name that begins with `run` for an option of its own.)
    """
    with recipe_experiment(recipe, executor, stage=stage, run_dir=folder, overrides=overrides) as experiment:
        experiment.run(detach=ctx.detach)


if __name__ == "__main__":
    command_line(study)
