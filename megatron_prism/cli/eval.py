"""`prism eval`: its verbs, each in a file of its own."""

from __future__ import annotations

import typer

from megatron_prism.cli.eval_compare import compare
from megatron_prism.cli.eval_select import select
from megatron_prism.cli.eval_show import show

app = typer.Typer(
    help="Score models on suites of problems, read their answers, and compare them.", no_args_is_help=True
)
app.command("show")(show)
app.command("compare")(compare)
app.command("select")(select)
