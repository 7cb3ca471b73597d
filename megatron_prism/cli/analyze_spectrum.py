"""`prism analyze spectrum`: in how many directions updates moved the weights, and whether two updates share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.analysis_output import OutOption, deliver
from megatron_prism.cli.analyze_weights import BaseArgument, OthersArgument
from megatron_prism.cli.folder_checks import check_folders
from megatron_prism.cli.output import JsonOption, bytes_bar

if TYPE_CHECKING:
    from megatron_prism.analysis.result import Analysis


def spectrum(
    base: BaseArgument,
    others: OthersArgument,
    top: Annotated[
        int,
        typer.Option("--top", metavar="K", help="Leading directions to find in each matrix, at most 1024."),
    ] = 16,
    out: OutOption = None,
    json_file: JsonOption = None,
) -> None:
    """Singular values, ranks and top-k shares of update matrices; angles between the directions of two updates."""
    # It reads configs, whose library --help does not load.
    from megatron_prism.analysis.stages.spectrum import check_top

    check_folders(base, *others)
    check_top(top)

    def make() -> Analysis:
        from megatron_prism.analysis.inputs import model_bytes
        from megatron_prism.analysis.spectrum_summary import analyze_spectrum

        with bytes_bar("spectrum", model_bytes(base)) as advance:
            return analyze_spectrum(base, others, top=top, progress=advance)

    deliver(make, out, json_file)
