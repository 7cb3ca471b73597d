"""`prism analyze`: its verbs, each in a file of its own."""

from __future__ import annotations

import typer

from megatron_prism.cli.analyze_cka import cka
from megatron_prism.cli.analyze_confidence import confidence
from megatron_prism.cli.analyze_direction import direction
from megatron_prism.cli.analyze_landscape import landscape
from megatron_prism.cli.analyze_spectrum import spectrum
from megatron_prism.cli.analyze_trajectory import trajectory
from megatron_prism.cli.analyze_weights import weights

app = typer.Typer(
    help="What a stage changed: in the weights, in the representations, and in the answers.",
    no_args_is_help=True,
)
app.command("weights")(weights)
app.command("direction")(direction)
app.command("spectrum")(spectrum)
app.command("trajectory")(trajectory)
app.command("cka")(cka)
app.command("confidence")(confidence)
app.command("landscape")(landscape)
