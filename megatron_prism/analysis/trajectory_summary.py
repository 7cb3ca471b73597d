"""A run's changes step by step, against its start: `analyze trajectory` as a document and rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.analysis.change import MAIN_THRESHOLD, THRESHOLDS, total
from megatron_prism.analysis.inputs import open_models
from megatron_prism.analysis.labels import labels
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.run_steps import check_other_models, find_steps, is_start
from megatron_prism.analysis.streaming import Piece, by_group, scan
from megatron_prism.analysis.trajectory import (
    EXACT,
    RELATIVE,
    RULES,
    Movement,
    Overlap,
    Pair,
    active_share,
    movement,
)
from megatron_prism.analysis.weight_summary import measure as measure_changes

VERB = "trajectory"
# Groups of pieces; layers are in the rows, because there would be too many of them for every step.
GROUPS = ("all", "components", "sub_components")


@dataclass(frozen=True)
class Places:
    """The models after the start: first the steps of the run, then the ends of other runs."""

    steps: int
    others: int

    @property
    def last(self) -> int:
        """The place of the run's last step."""
        return self.steps - 1

    @property
    def pairs(self) -> list[Pair]:
        """Whose active sets are compared: steps in a row, each step and the last one, the last one and each other."""
        in_a_row = [(index - 1, index) for index in range(1, self.steps)]
        with_last = [(index, self.last) for index in range(self.last - 1)]
        return [*in_a_row, *with_last, *((self.last, self.steps + index) for index in range(self.others))]


def analyze_trajectory(
    start: Path,
    given: Sequence[Path],
    against: Sequence[Path] = (),
    *,
    names: tuple[str, Sequence[str]] | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Analysis:
    """How far each step of a run is from its start, and how the sets of changed elements overlap, in one pass.

    Args:
        start: the model before the first step.
        given: the run, or its steps; see `run_steps.find_steps`.
        against: final models of other runs from the same start, whose changed elements are compared with the last
            step's.
        names: of the start, and of `against`, in tables; by default the ends of their paths.
        progress: called with the number of bytes of the start that were read since the last call.

    Raises:
        ConfigError: for fewer than two steps (one, if there is `against`), steps without a number or of several runs,
            or a folder given twice.
        CheckpointError: for a damaged folder, another architecture, or a NaN or an infinite number in a tensor.
    """
    steps = find_steps(given, least=1 if against else 2)
    check_other_models(steps, start, against)
    models, remarks = open_models(start, [*(each.folder for each in steps), *against])
    if is_start(start, steps[-1].folder) is False:
        remarks.append(f"{start}: is not the model with which {given[0]} began, by its receipt")
    remarks += [
        f"{start}: is not the model with which {other} began, by its receipt; the overlap is not that of two runs "
        "from one start"
        for other in against
        if is_start(start, other) is False
    ]
    start_name, *other_names = labels([start, *against]) if names is None else [names[0], *names[1]]
    places = Places(len(steps), len(against))
    pairs = places.pairs
    found = list(scan(models, lambda stored: movement(stored[0], stored[1:], pairs), progress))
    pieces = [piece for piece, _ in found]
    moved = [each for _, each in found]

    def groups(measure: Callable[..., dict[str, Any]], *rest: Any) -> dict[str, Any]:
        grouped = by_group(pieces, lambda indices: measure([moved[index] for index in indices], *rest))
        return {name: grouped[name] for name in GROUPS}

    described = [
        {"step": each.step, "folder": str(each.folder), **groups(measure_step, places, index)}
        for index, each in enumerate(steps)
    ]
    compared = [
        {"model": name, "folder": str(path), **groups(measure_other, places, index)}
        for index, (name, path) in enumerate(zip(other_names, against, strict=True), start=len(steps))
    ]
    return Analysis(
        verb=VERB,
        summary={
            "start": start_name,
            "steps": [each.step for each in steps],
            **{
                key: [step["all"][key] for step in described]
                for key in ("norm_delta", "share_of_final", "active", "active_exact")
            },
            "against": {each["model"]: each["all"]["overlap"][RELATIVE] for each in compared},
        },
        values={
            "base": {"model": start_name, "folder": str(start)},
            "family": models[0].architecture.family,
            "thresholds": list(THRESHOLDS),
            "main_threshold": MAIN_THRESHOLD,
            "trajectory": described,
            "against": compared,
        },
        rows={"steps": list(_rows([each.step for each in steps], found, places))},
        remarks=remarks,
    )


def measure_step(pieces: Sequence[Movement], places: Places, index: int) -> dict[str, Any]:
    """The numbers of one step; docs/analysis.md has the formula of each. None where one is not defined."""
    last = places.last
    change = total(each.changes[index] for each in pieces)
    whole = total(each.changes[last] for each in pieces).change_squares
    return {
        # The same numbers under the same names as in `analyze weights`.
        **measure_changes(each.changes[index] for each in pieces),
        "norm": math.sqrt(change.change_squares),
        "share_of_final": math.sqrt(change.change_squares / whole) if whole else None,
        "active": active_share(change),
        "active_exact": active_share(change, EXACT),
        "with_previous": measure_overlap(pieces, places, (index - 1, index)) if index else None,
        "with_last": measure_overlap(pieces, places, (index, last)) if index < last else None,
    }


def measure_other(pieces: Sequence[Movement], places: Places, index: int) -> dict[str, Any]:
    """The numbers of another run's final model, and its overlap with the last step."""
    return {
        **measure_changes(each.changes[index] for each in pieces),
        "overlap": measure_overlap(pieces, places, (places.last, index)),
    }


def measure_overlap(pieces: Sequence[Movement], places: Places, pair: Pair) -> dict[str, Any]:
    """The overlap of the active sets of two models, by both rules.

    Chance is that of sets that are independent within each piece, so it includes that some tensors have more active
    elements than others.
    """
    found = {}
    number = places.pairs.index(pair)
    for rule in RULES:
        sets = sum((each.overlap(pair, number, rule) for each in pieces), start=Overlap())
        found[rule] = {
            "first": sets.first,
            "second": sets.second,
            "both": sets.both,
            "of_first": sets.of_first,
            "of_second": sets.of_second,
            "jaccard": sets.jaccard,
            "chance_both": sets.chance,
            "chance_jaccard": sets.chance_jaccard,
            "size_chance_both": sets.size_chance,
            "size_chance_jaccard": sets.size_chance_jaccard,
        }
    return found


def _rows(
    steps: Sequence[int], found: Sequence[tuple[Piece, Movement]], places: Places
) -> Iterator[dict[str, Any]]:
    """One record for every sub-component of every tensor and every step."""
    for piece, moved in found:
        for index, step in enumerate(steps):
            measured = measure_step([moved], places, index)
            previous, final = measured["with_previous"], measured["with_last"]
            yield {
                "step": step,
                "tensor": piece.tensor,
                "layer": piece.layer,
                "component": piece.component,
                "sub_component": piece.part,
                "shape": list(piece.shape),
                "elements": measured["elements"],
                "delta": measured["norm_delta"],
                "norm": measured["norm"],
                "share_of_final": measured["share_of_final"],
                "active": measured["active"],
                "active_exact": measured["active_exact"],
                "jaccard_with_previous": previous[RELATIVE]["jaccard"] if previous else None,
                **{
                    f"{key}_with_last": final[RELATIVE][key] if final else None
                    for key in ("jaccard", "chance_jaccard", "size_chance_jaccard")
                },
            }
