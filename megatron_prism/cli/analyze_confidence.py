"""`prism analyze confidence`: how long and how sure the right and the wrong answers of models are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.analysis_output import OutOption, deliver
from megatron_prism.cli.eval_compare import ConfidenceOption, short_names
from megatron_prism.cli.number_checks import whole_number
from megatron_prism.cli.output import JsonOption
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.analysis.result import Analysis


def confidence(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="EVALUATION...",
            help="runs/shoebox:extend, a run folder of `prism eval`, or one evaluation, as "
            "runs/shoebox/evaluate_base.",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="NAME", help="Only this suite; repeat it. Default: all in common."),
    ] = None,
    least: Annotated[
        int,
        typer.Option("--least", help="Correct (or incorrect) answers need so many problems to have a mean."),
    ] = 10,
    confidence: ConfidenceOption = 0.95,
    out: OutOption = None,
    json_file: JsonOption = None,
) -> None:
    """Pass rate, median length, and mean negative log-probability of correct and of incorrect answers."""
    whole_number(least, "--least", least=1)
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence:g}: must be between 0 and 1, for example 0.95")

    def make() -> Analysis:
        from megatron_prism.analysis.confidence import analyze_confidence
        from megatron_prism.evaluation.answers import find_answers

        folders = [find_answers(name) for name in evaluations]
        # The same evaluation has several names: RUN:MODEL, its folder, or a link.
        seen = dict[Path, str]()
        for name, folder in zip(evaluations, folders, strict=True):
            if folder.resolve() in seen:
                raise ConfigError(
                    f"{name}: named twice (as {seen[folder.resolve()]}); every evaluation must be another one"
                )
            seen[folder.resolve()] = name
        return analyze_confidence(
            dict(zip(short_names(evaluations), folders, strict=True)),
            suite or [],
            least_problems=least,
            confidence=confidence,
        )

    deliver(make, out, json_file)
