"""`prism eval compare`: models that were evaluated on the same problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.evaluation.comparison import Comparison
    from megatron_prism.evaluation.scored_model import ScoredModel

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="BASE OTHER...",
        help="runs/shoebox:base (all scores of that model in the run), a run folder of `prism eval`, or one "
        "evaluation; the first is the base.",
    ),
]
MarginOption = Annotated[
    float,
    typer.Option("--margin", help="A loss of up to so many points is harmless: decide before you look."),
]
ConfidenceOption = Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")]


def compare(
    models: ModelsArgument,
    margin: MarginOption = 2.0,
    confidence: ConfidenceOption = 0.95,
    json_file: JsonOption = None,
) -> None:
    """Every model against the first: differences on the same problems, their intervals, and what was kept."""
    check_json_target(json_file)
    if len(models) < 2:
        raise ConfigError(f"{models[0]}: give two or more evaluations; the first is the base")
    if len(set(models)) < len(models):
        twice = Counter(models).most_common(1)[0][0]
        raise ConfigError(f"{twice}: named twice; every evaluation must be another one")
    if not 0 <= margin <= 100:
        raise ConfigError(f"--margin {margin:g}: must be between 0 and 100 points")
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence:g}: must be between 0 and 1, for example 0.95")
    from megatron_prism.evaluation import comparison
    from megatron_prism.evaluation.scored_model import find_scored_model

    read = {name: find_scored_model(name) for name in models}
    named = dict(zip(short_names(models), read.values(), strict=True))
    made = comparison.compare(named, margin / 100, confidence)
    groups = comparison.group_changes(made, margin / 100)
    _show_suites(made, models[0], margin, confidence, json_file)
    rows = [
        (
            each.model,
            each.group,
            each.suites,
            f"{100 * each.change:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})",
            each.verdict,
        )
        for each in groups
    ]
    title = f"retention: mean change in points of the suites of a group, with a margin of {margin:g} points"
    show_table(json_file, title, ["model", "group", "suites", "change", "verdict"], rows)
    means = _show_averages(named, json_file)
    write_result(
        json_file,
        {
            "margin": margin / 100,
            "comparisons": [asdict(each) for each in made],
            "groups": [asdict(each) for each in groups],
            "averages": means,
        },
    )


def _show_suites(
    made: Sequence[Comparison], base: str, margin: float, confidence: float, json_file: str | None
) -> None:
    from megatron_prism.evaluation.comparison import MOST_SUITES_SHOWN

    sizes = Counter((each.model, each.group) for each in made)
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
        if sizes[each.model, each.group] <= MOST_SUITES_SHOWN
    ]
    title = f"against {base}: points on the same problems, {100 * confidence:g} % intervals"
    columns = ["model", "suite", "before", "after", "change", "p (Holm)", "detectable", f"margin {margin:g}"]
    show_table(json_file, title, columns, rows)
    for (model, group), count in sizes.items():
        if count > MOST_SUITES_SHOWN:
            show_line(json_file, f"{model}: the {count} suites of group '{group}' are in --json FILE only")
    if left_out := {f"{each.only_in_one} of {each.suite}" for each in made if each.only_in_one}:
        show_line(
            json_file,
            f"left out, because only one of two models answered them: {', '.join(sorted(left_out))}",
        )


def _show_averages(named: dict[str, ScoredModel], json_file: str | None) -> list[dict[str, object]]:
    from megatron_prism.evaluation.comparison import averages

    means = list(averages(named))
    rows = [
        (
            each.model,
            *(f"{100 * value:.2f}" for value in (each.of_benchmarks, each.of_domains) if value is not None),
        )
        for each in means
    ]
    if rows:
        columns = ["model", "of six benchmarks", "of three domains"]
        show_table(json_file, "the paper's averages", columns, rows)
    return [asdict(each) for each in means]


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each name, or all of it where two are the same."""
    last = [name.rstrip("/").rpartition(":")[2].rpartition("/")[2] for name in models]
    return [name if last.count(short) > 1 else short for name, short in zip(models, last, strict=True)]
