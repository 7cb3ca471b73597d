"""`prism eval compare`: models that were evaluated on the same problems."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError

FoldersArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="BASE OTHER...", help="Evaluation artifacts: runs/RUN/evaluate_MODEL; the first is the base."
    ),
]
MarginOption = Annotated[
    float,
    typer.Option("--margin", help="A loss of up to so many points is harmless: decide before you look."),
]
ConfidenceOption = Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")]


def compare(
    folders: FoldersArgument,
    margin: MarginOption = 2.0,
    confidence: ConfidenceOption = 0.95,
    json_file: JsonOption = None,
) -> None:
    """Every model against the first: differences on the same problems, their intervals, and what was kept."""
    check_json_target(json_file)
    if len(folders) < 2:
        raise ConfigError(f"{folders[0]}: give two or more evaluations; the first is the base")
    if not 0 <= margin <= 100:
        raise ConfigError(f"--margin {margin:g}: must be between 0 and 100 points")
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence:g}: must be between 0 and 1, for example 0.95")
    from megatron_prism.evaluation import comparison

    named = _names(folders)
    made = comparison.compare(named, margin / 100, confidence)
    rows = [
        (
            each.model,
            each.suite,
            f"{100 * each.before:.1f}",
            f"{100 * each.after:.1f}",
            f"{100 * each.test.change:+.1f} ({100 * each.test.low:+.1f} to {100 * each.test.high:+.1f})",
            f"{each.corrected:.3f}" if each.corrected >= 0.001 else "< 0.001",
            f"{100 * each.test.detectable:.1f}",
            each.verdict,
        )
        for each in made
    ]
    title = f"against {folders[0]}: points on the same problems, {100 * confidence:g} % intervals"
    columns = ["model", "suite", "before", "after", "change", "p (Holm)", "detectable", f"margin {margin:g}"]
    show_table(json_file, title, columns, rows)
    if left_out := {f"{each.only_in_one} of {each.suite}" for each in made if each.only_in_one}:
        show_line(
            json_file,
            f"left out, because only one of two models answered them: {', '.join(sorted(left_out))}",
        )
    means = list(comparison.averages(named))
    if means:
        table = [
            (
                each.model,
                *(
                    f"{100 * value:.2f}"
                    for value in (each.of_benchmarks, each.of_domains)
                    if value is not None
                ),
            )
            for each in means
        ]
        show_table(
            json_file, "the paper's averages", ["model", "of six benchmarks", "of three domains"], table
        )
    write_result(
        json_file,
        {
            "margin": margin / 100,
            "comparisons": [asdict(each) for each in made],
            "averages": [asdict(each) for each in means],
        },
    )


def _names(folders: list[Path]) -> dict[str, Path]:
    """A name for each folder: the last part of its path, or all of it where two are the same."""
    last = [folder.name for folder in folders]
    named = {(str(folder) if last.count(folder.name) > 1 else folder.name): folder for folder in folders}
    if len(named) < len(folders):
        raise ConfigError("a folder is given twice; every evaluation must be another one")
    return named
