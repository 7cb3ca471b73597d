"""`prism analyze weights`: how far and where the weights of models moved from those of their base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.analysis_output import OutOption, deliver
from megatron_prism.cli.folder_checks import check_folders
from megatron_prism.cli.output import JsonOption, bytes_bar

if TYPE_CHECKING:
    from megatron_prism.analysis.result import Analysis

BaseArgument = Annotated[
    Path,
    typer.Argument(
        metavar="BASE", help="The model before: a Hugging Face or Megatron folder, or runs/RUN/STAGE."
    ),
]
OthersArgument = Annotated[
    list[Path], typer.Argument(metavar="OTHER...", help="The models after, all compared in one pass.")
]


def weights(
    base: BaseArgument,
    others: OthersArgument,
    out: OutOption = None,
    json_file: JsonOption = None,
) -> None:
    """Relative change, sparsity and what the stored precision hides, by tensor, layer, component, sub-component."""
    check_folders(base, *others)

    def make() -> Analysis:
        from megatron_prism.analysis.inputs import model_bytes
        from megatron_prism.analysis.weight_summary import analyze_weights

        with bytes_bar("weights", model_bytes(base)) as advance:
            return analyze_weights(base, others, progress=advance)

    deliver(make, out, json_file)
