"""`prism eval`: its verbs, each in a file of its own. Without a verb, the first argument is a model to score."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from megatron_prism.cli.eval_compare import compare
from megatron_prism.cli.eval_model import model
from megatron_prism.cli.eval_select import select
from megatron_prism.cli.eval_show import show

DEFAULT = "score"


class ModelGroup(TyperGroup):
    """Takes arguments that do not begin with a verb as those of the verb `score`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_help = args[:1] in (["--help"], ["-h"])
        if args and args[0] not in self.commands and not asks_help:
            args = [DEFAULT, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    cls=ModelGroup,
    help="Score models on suites of problems, read their answers, and compare them.\n\n"
    "prism eval MODEL --suite reasoning is short for prism eval score MODEL --suite reasoning; ./show is a folder.",
    no_args_is_help=True,
)
app.command(DEFAULT, hidden=True)(model)
app.command("show")(show)
app.command("compare")(compare)
app.command("select")(select)
