"""The cosines of updates by component, sub-component and layer: `analyze direction` as a document and rows.

Two meanings of the cosine of a group stand under their own names: `cosine` of the concatenated updates, in which
tensors that changed much count more, and `mean_cosine`, the mean over tensors weighted by their numbers of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from megatron_prism.analysis.direction import (
    Pairs,
    Products,
    chance_absolute,
    chance_std,
    mean_cosine,
    pair_products,
)
from megatron_prism.analysis.inputs import open_models
from megatron_prism.analysis.labels import labels
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.streaming import Piece, by_group, scan
from megatron_prism.errors import ConfigError

VERB = "direction"


def analyze_direction(
    base: Path,
    others: Sequence[Path],
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Analysis:
    """The cosine between the updates of each pair of `others`, in one pass over the files of all models.

    Args:
        names: of the base and the others in tables; by default the ends of their paths.
        progress: called with the number of bytes of the base that were read since the last call.

    Raises:
        ConfigError: for fewer than two models besides the base, or a folder given twice.
        CheckpointError: for a damaged folder, another architecture, or a NaN or an infinite number in a tensor.
    """
    if len(others) < 2:
        raise ConfigError(
            f"{base}: an angle needs two updates; give the base and two or more models trained from it, "
            f"not {len(others)}"
        )
    models, remarks = open_models(base, others)
    found = list(scan(models, lambda stored: pair_products(stored[0], stored[1:]), progress))
    base_name, *other_names = names or labels([base, *others])
    pieces = [piece for piece, _ in found]
    pairs = [
        {
            "first": other_names[i],
            "second": other_names[j],
            **summarize(pieces, [sums[i, j] for _, sums in found]),
        }
        for i, j in combinations(range(len(others)), 2)
    ]
    norms = {pair[place]: pair["all"][f"{place}_norm"] for pair in pairs for place in ("first", "second")}
    remarks += [
        f"{name}: every weight equals that of {base_name}, so its update has no direction"
        for name, norm in norms.items()
        if not norm
    ]
    return Analysis(
        verb=VERB,
        summary={"base": base_name, "pairs": [_headline(pair) for pair in pairs]},
        values={
            "base": {"model": base_name, "folder": str(base)},
            "family": models[0].architecture.family,
            "models": [
                {"model": name, "folder": str(path)} for name, path in zip(other_names, others, strict=True)
            ],
            "pairs": pairs,
        },
        rows={"cosines": list(_rows(other_names, found))},
        remarks=remarks,
    )


def summarize(pieces: Sequence[Piece], sums: Sequence[Products]) -> dict[str, Any]:
    """One pair's cosines: `overall`, and those of `streaming.by_group`.

    `overall` is the paper's "Overall (wtd avg)": the mean of the sub-components' cosines, weighted by their elements.
    Its published bars and totals of Granite-3.3 and Nemotron-H agree with these weights to three digits.
    """
    found = by_group(pieces, lambda indices: measure([sums[index] for index in indices]))
    known = [each for each in found["sub_components"].values() if each["cosine"] is not None]
    elements = sum(each["elements"] for each in known)
    overall = sum(each["elements"] * each["cosine"] for each in known) / elements if elements else None
    return {"overall": overall, **found}


def measure(pieces: Sequence[Products]) -> dict[str, Any]:
    """The numbers of a set of pieces; docs/analysis.md has the formula of each. None where one is not defined."""
    together = sum(pieces, start=Products())
    return {
        "tensors": len(pieces),
        "without_cosine": sum(each.cosine is None for each in pieces),
        "elements": together.elements,
        "cosine": together.cosine,
        "mean_cosine": mean_cosine(pieces),
        "chance_std": chance_std(together.elements),
        "chance_absolute": chance_absolute(together.elements),
        "sign_flip_std": together.sign_flip_std,
        "first_norm": together.first_squares**0.5,
        "second_norm": together.second_squares**0.5,
    }


def _headline(pair: Mapping[str, Any]) -> dict[str, Any]:
    whole = pair["all"]
    return {
        "first": pair["first"],
        "second": pair["second"],
        "overall": pair["overall"],
        **{key: whole[key] for key in ("cosine", "mean_cosine", "chance_std", "sign_flip_std")},
    }


def _rows(names: Sequence[str], found: Sequence[tuple[Piece, Pairs]]) -> Iterator[dict[str, Any]]:
    """One record for every sub-component of every tensor and every pair."""
    for piece, pairs in found:
        for (i, j), sums in pairs.items():
            measured = measure([sums])
            # A record is about one piece, so its mean is its own cosine.
            for key in ("tensors", "mean_cosine", "without_cosine"):
                measured.pop(key)
            yield {
                "first": names[i],
                "second": names[j],
                "tensor": piece.tensor,
                "layer": piece.layer,
                "component": piece.component,
                "sub_component": piece.part,
                "shape": list(piece.shape),
                **measured,
            }
