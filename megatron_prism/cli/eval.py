"""`prism eval`: its verbs, each in a file of its own."""

from __future__ import annotations

import typer

from megatron_prism.cli.eval_compare import compare

app = typer.Typer(help="Score models on suites of problems, and compare them.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Keeps `compare` a verb of its own while it is the only one."""


app.command("compare")(compare)
