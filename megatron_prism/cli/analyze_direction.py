"""`prism analyze direction`: whether models that were trained from one base moved the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.analysis_output import OutOption, deliver
from megatron_prism.cli.analyze_weights import BaseArgument
from megatron_prism.cli.folder_checks import check_folders
from megatron_prism.cli.output import JsonOption, bytes_bar

if TYPE_CHECKING:
    from megatron_prism.analysis.result import Analysis

UpdatesArgument = Annotated[
    list[Path], typer.Argument(metavar="A B...", help="Two or more models that were trained from it.")
]


def direction(
    base: BaseArgument,
    others: UpdatesArgument,
    out: OutOption = None,
    json_file: JsonOption = None,
) -> None:
    """Cosine between the updates from BASE to A and to B, by sub-component, with what chance would give."""

    check_folders(base, *others)

    def make() -> Analysis:
        from megatron_prism.analysis.direction_summary import analyze_direction
        from megatron_prism.analysis.inputs import model_bytes

        with bytes_bar("direction", model_bytes(base)) as advance:
            return analyze_direction(base, others, progress=advance)

    deliver(make, out, json_file)
