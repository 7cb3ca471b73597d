"""`prism eval select`: the best of several checkpoints, and how much too good its score is for having been chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from megatron_prism.cli.eval_compare import ConfidenceOption, short_names
from megatron_prism.cli.number_checks import whole_number
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError


def select(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="The scores of each checkpoint, in order: run folders of `prism eval`, evaluations, or RUN:MODEL.",
        ),
    ],
    confidence: ConfidenceOption = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Of the divisions of the problems.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """The best checkpoint by the paper's two rules, with its score corrected for the choice."""
    check_json_target(json_file)
    whole_number(seed, "--seed", least=0)
    if len(checkpoints) < 2:
        raise ConfigError(f"{checkpoints[0]}: give the scores of two or more checkpoints")
    if len(set(checkpoints)) < len(checkpoints):
        raise ConfigError(f"{Counter(checkpoints).most_common(1)[0][0]}: named twice")
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence:g}: must be between 0 and 1, for example 0.95")
    from megatron_prism.evaluation.scored_model import find_scored_model
    from megatron_prism.evaluation.selection import left_out
    from megatron_prism.evaluation.selection import select as select_checkpoints

    read = map(find_scored_model, checkpoints)
    named = dict(zip(short_names(checkpoints), read, strict=True))
    made = select_checkpoints(named, confidence, seed)
    rows = [
        (
            each.rule,
            each.of,
            ", ".join(dict.fromkeys(each.chosen)),
            f"{100 * each.printed:.1f}",
            f"{100 * each.corrected:.1f} ({100 * each.low:.1f} to {100 * each.high:.1f})",
            f"{100 * each.bias:+.1f}",
        )
        for each in made
    ]
    title = f"the best of {len(checkpoints)} checkpoints, in percent, {100 * confidence:g} % intervals"
    show_table(json_file, title, ["rule", "of", "chosen", "printed", "corrected", "bias"], rows)
    show_line(
        json_file,
        "corrected: checkpoints chosen by half of the problems, scored on the other half (docs/evaluation.md)",
    )
    if counts := left_out(named):
        listed = ", ".join(f"{count} of {suite}" for suite, count in counts.items())
        show_line(json_file, f"left out, because not all checkpoints answered them: {listed}")
    write_result(json_file, {"confidence": confidence, "selected": [asdict(each) for each in made]})
