"""A recipe with nemo-run from Python: the whole recipe, and one stage among tasks of one's own.

python examples/nemo_run_python.py shoebox --stage tokens --executor recipes/executors/local.yaml --set tiny=true
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nemo_run as run

from megatron_prism.errors import PrismError
from megatron_prism.study.nemo_recipes import recipe_experiment, require_success, stage_partial


def main(recipe: str, stage: str, executor: str, *, run_dir: Path, settings: Sequence[str]) -> None:
    # Every stage up to this one as a task of its own, on what the executor file describes. A task that fails ends the
    # block with an error; nemo-run alone would not.
    with recipe_experiment(recipe, executor, stage=stage, run_dir=run_dir, overrides=settings) as experiment:
        experiment.run()

    # An experiment of your own. What the first one has made is not made again.
    with run.Experiment("report-on-a-stage") as mine:
        task = stage_partial(recipe, stage, run_dir=run_dir, overrides=settings)
        first = mine.add(task, executor=run.LocalExecutor(), name="stage")
        listing = run.Script(inline=f"ls {(run_dir / stage).resolve()}/")
        mine.add(listing, executor=run.LocalExecutor(), name="listing", dependencies=[first])
        mine.run()
    require_success(mine)


# nemo-run imports this file again in every job of a `run.Partial`.
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--executor", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/nemo-run"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    chosen = parser.parse_args()
    try:
        main(chosen.recipe, chosen.stage, chosen.executor, run_dir=chosen.run_dir, settings=chosen.settings)
    except PrismError as problem:
        sys.exit(f"error: {problem}")
