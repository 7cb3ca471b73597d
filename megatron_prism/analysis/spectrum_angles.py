"""The angles between the leading directions of two models' updates, matrix by matrix, and their means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_prism.analysis.spectrum import Spectrum
from megatron_prism.analysis.streaming import Piece, by_group
from megatron_prism.analysis.subspaces import chance_overlap, overlap, principal_cosines


@dataclass(frozen=True)
class Angles:
    """The leading directions of one piece's update in two models.

    Attributes:
        directions: how many are compared: `top`, or the rank of an update that has fewer.
        left: cosines of the principal angles in the space of rows, largest first.
        right: in the space of columns.
    """

    directions: int
    left: list[float]
    right: list[float]


def compare(first: Spectrum, second: Spectrum, top: int) -> Angles | None:
    """The principal angles between the leading directions of two updates; None if one of them is zero."""
    directions = min(top, *(top if each.rank is None else each.rank for each in (first, second)))
    if not directions:
        return None
    left, right = (
        principal_cosines(*(vectors[:, :directions] for vectors in both)).tolist()
        for both in ((first.left, second.left), (first.right, second.right))
    )
    return Angles(directions, left, right)


def angles_by_group(matrices: Sequence[Piece], compared: Sequence[Angles | None]) -> dict[str, Any]:
    """Means over the matrices of each group; docs/analysis.md has the formula of each."""

    def measured(indices: list[int]) -> dict[str, Any]:
        chosen = [
            (matrices[index].shape, found) for index in indices if (found := compared[index]) is not None
        ]
        return {
            "matrices": len(indices),
            "without_angles": len(indices) - len(chosen),
            "directions": mean(float(each.directions) for _, each in chosen),
            "left_overlap": mean(_overlap(each.left) for _, each in chosen),
            "left_chance": mean(chance_overlap(each.directions, shape[0]) for shape, each in chosen),
            "right_overlap": mean(_overlap(each.right) for _, each in chosen),
            "right_chance": mean(chance_overlap(each.directions, shape[1]) for shape, each in chosen),
            "left_largest_cosine": mean(each.left[0] for _, each in chosen),
            "right_largest_cosine": mean(each.right[0] for _, each in chosen),
        }

    return by_group(matrices, measured)


def _overlap(cosines: Sequence[float]) -> float:
    return overlap(torch.tensor(cosines, dtype=torch.float64))


def angle_rows(
    names: Sequence[str],
    matrices: Sequence[Piece],
    angles: Mapping[tuple[int, int], Sequence[Angles | None]],
) -> Iterator[dict[str, Any]]:
    """One record for every matrix of every two models."""
    for (i, j), compared in angles.items():
        for piece, found in zip(matrices, compared, strict=True):
            yield {
                "first": names[i],
                "second": names[j],
                **describe(piece),
                "directions": found.directions if found else None,
                "left_cosines": found.left if found else None,
                "right_cosines": found.right if found else None,
            }


def describe(piece: Piece) -> dict[str, Any]:
    """The columns of a row that say which matrix it is about."""
    return {
        "tensor": piece.tensor,
        "layer": piece.layer,
        "component": piece.component,
        "sub_component": piece.part,
        "shape": list(piece.shape),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if there are none, or one of them is not known."""
    known = list(values)
    if not known or any(each is None for each in known):
        return None
    return math.fsum(each for each in known if each is not None) / len(known)
