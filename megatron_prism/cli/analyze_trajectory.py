"""`prism analyze trajectory`: how far, and in which elements, a run has moved from its start by each of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.analysis_output import OutOption, deliver
from megatron_prism.cli.folder_checks import check_folders
from megatron_prism.cli.output import JsonOption, bytes_bar

if TYPE_CHECKING:
    from megatron_prism.analysis.result import Analysis


def trajectory(
    start: Annotated[
        Path,
        typer.Argument(metavar="START", help="The model with which the run began, such as runs/RUN/STAGE."),
    ],
    steps: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|STEP...",
            help="The run's stage, with the weights of checkpoints.weights_every; or folders of models named by step.",
        ),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="The end of another run from START; repeat for each: subnetwork overlap.",
        ),
    ] = None,
    out: OutOption = None,
    json_file: JsonOption = None,
) -> None:
    """Distance from the start, active set and its overlaps by step; the overlap of changed weights between runs."""
    others = against or []
    check_folders(start, *steps, *others)

    def make() -> Analysis:
        from megatron_prism.analysis.inputs import model_bytes
        from megatron_prism.analysis.trajectory_summary import analyze_trajectory

        with bytes_bar("trajectory", model_bytes(start)) as advance:
            return analyze_trajectory(start, steps, others, progress=advance)

    deliver(make, out, json_file)
