"""The spectra of update matrices by component, sub-component and layer: `analyze spectrum` as a document and rows."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

from megatron_prism.analysis.inputs import open_models
from megatron_prism.analysis.labels import labels
from megatron_prism.analysis.random_spectrum import random_spectrum
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.spectrum import (
    ENERGIES,
    TOLERANCE,
    Spectrum,
    decay,
    exact_spectrum,
    leading_spectrum,
    share_sizes,
)
from megatron_prism.analysis.spectrum_angles import (
    Angles,
    angle_rows,
    angles_by_group,
    compare,
    describe,
    mean,
)
from megatron_prism.analysis.streaming import Piece, by_group, pieces
from megatron_prism.analysis.update_matrices import UpdateMatrix
from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import MegatronWeights, Weights
from megatron_prism.merging.blocks import OpenFiles

VERB = "spectrum"
# A full decomposition takes about rows x columns x the shorter side operations, some twenty times over: a second.
EXACT_WORK, EXACT_ELEMENTS = 1 << 30, 1 << 22


def analyze_spectrum(
    base: Path,
    others: Sequence[Path],
    names: Sequence[str] | None = None,
    *,
    top: int = 16,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Analysis:
    """The singular values of the update matrices of `others`, and the angles between those of each two of them.

    Args:
        names: of the base and the others in tables; by default the ends of their paths.
        top: at least 1: how many leading directions are found in a matrix that is too large for a full decomposition.
        progress: called with the number of bytes of the base whose matrices are done since the last call.

    Raises:
        ConfigError: for no other model, or a folder given twice.
        CheckpointError: for a damaged folder, another architecture, or a NaN or an infinite number in a tensor.
    """
    models, remarks = open_models(base, others)
    matrices = [piece for piece in pieces(models[0]) if len(piece.shape) == 2]
    spectra: list[list[Spectrum]] = [[] for _ in others]
    angles: dict[tuple[int, int], list[Angles | None]] = {
        pair: [] for pair in combinations(range(len(others)), 2)
    }
    for found in _scan(models, matrices, top, progress):
        for own, each in zip(spectra, found, strict=True):
            own.append(_without_vectors(each))
        for (i, j), compared in angles.items():
            compared.append(compare(found[i], found[j], top))
    base_name, *other_names = names or labels([base, *others])
    described = [
        {
            "model": name,
            "folder": str(path),
            **_spectra_by_group(matrices, own, top),
        }
        for name, path, own in zip(other_names, others, spectra, strict=True)
    ]
    for name, own in zip(other_names, spectra, strict=True):
        open_ends = sum(each.residual > TOLERANCE for each in own)
        if open_ends:
            remarks.append(
                f"{name}: in {open_ends} of {len(own)} matrices the leading directions hardly differ from the rest; "
                "their singular values are lower bounds, as good as `residual` says"
            )
    return Analysis(
        verb=VERB,
        summary={
            "base": base_name,
            "top": top,
            "models": {each["model"]: _headline(each) for each in described},
        },
        values={
            "base": {"model": base_name, "folder": str(base)},
            "family": models[0].architecture.family,
            "top": top,
            "share_sizes": share_sizes(top),
            "energies": list(ENERGIES),
            "models": described,
            "pairs": [
                {"first": other_names[i], "second": other_names[j], **angles_by_group(matrices, compared)}
                for (i, j), compared in angles.items()
            ],
        },
        rows={
            "spectra": list(_rows(other_names, matrices, spectra, top)),
            **({"angles": list(angle_rows(other_names, matrices, angles))} if angles else {}),
        },
        remarks=remarks,
    )


def spectrum_of(matrix: UpdateMatrix, top: int) -> Spectrum:
    """All singular values of a small update, or the `top` leading ones."""
    rows, columns = matrix.shape
    elements = rows * columns
    if elements <= EXACT_ELEMENTS and elements * min(rows, columns) <= EXACT_WORK:
        return exact_spectrum(matrix.whole())
    return leading_spectrum(matrix.blocks, matrix.shape, top)


def measure(spectra: Sequence[Spectrum], top: int) -> dict[str, Any]:
    """Means over a set of matrices; docs/analysis.md has the formula of each. None where one is not defined."""
    changed = [each for each in spectra if each.energy]
    random = [random_spectrum(*each.shape) for each in changed]
    bounds = [found for each in changed if (found := each.effective_rank()) is not None]
    energy = sum(each.energy for each in changed)
    exact = all(each.exact for each in changed)
    return {
        "matrices": len(spectra),
        "without_update": len(spectra) - len(changed),
        "exact": sum(each.exact for each in changed),
        "elements": sum(math.prod(each.shape) for each in spectra),
        "residual": max((each.residual for each in changed), default=None),
        "share": [mean(each.share(size) for each in changed) for size in share_sizes(top)],
        "energy_share": [
            sum(each.energy * (each.share(size) or 0.0) for each in changed) / energy if energy else None
            for size in share_sizes(top)
        ],
        "random_share": [mean(each.share(size) for each in random) for size in share_sizes(top)],
        "stable_rank": mean(each.stable_rank for each in changed),
        "random_stable_rank": mean(each.stable_rank for each in random),
        "effective_rank": mean(low for low, _ in bounds) if exact else None,
        "effective_rank_low": mean(low for low, _ in bounds),
        "effective_rank_high": mean(high for _, high in bounds),
        "random_effective_rank": mean(each.effective_rank for each in random),
        "full_rank": mean(float(each.size) for each in changed),
        "rank": mean(each.rank for each in changed),
        "rank_at": [mean(each.rank_at(share) for each in changed) for share in ENERGIES],
        "decay": _mean_decay([decay(each.values, top) for each in changed]),
        "random_decay": _mean_decay([each.decay(top) for each in random]),
    }


def _spectra_by_group(matrices: Sequence[Piece], spectra: Sequence[Spectrum], top: int) -> dict[str, Any]:
    return by_group(matrices, lambda indices: measure([spectra[index] for index in indices], top))


def _scan(
    models: Sequence[Weights], matrices: Sequence[Piece], top: int, progress: Callable[[int], None]
) -> Iterator[list[Spectrum]]:
    """For each piece, the spectra of its update in every model after the first."""
    base, *others = models
    megatron = any(isinstance(each, MegatronWeights) for each in models)
    with OpenFiles(os.O_RDONLY) as files, quick_collection() if megatron else nullcontext():
        name = ""
        for piece in matrices:
            if piece.tensor != name:
                name = piece.tensor
                for model in models:
                    model.release()
            yield [spectrum_of(UpdateMatrix(piece, base, other, files), top) for other in others]
            progress(piece.elements * base.dtypes[name].itemsize)


def _without_vectors(spectrum: Spectrum) -> Spectrum:
    nothing = spectrum.values.new_empty(0, 0)
    return dataclasses.replace(spectrum, left=nothing, right=nothing)


def _mean_decay(decays: Sequence[Sequence[float]]) -> list[float]:
    """The mean at each place, over those that have one."""
    longest = max(map(len, decays), default=0)
    at = [[each[place] for each in decays if len(each) > place] for place in range(longest)]
    return [math.fsum(each) / len(each) for each in at]


def _headline(model: Mapping[str, Any]) -> dict[str, Any]:
    whole = model["all"]
    keys = (
        "share",
        "random_share",
        "stable_rank",
        "random_stable_rank",
        "effective_rank",
        "random_effective_rank",
    )
    return {key: whole[key] for key in keys}


def _rows(
    names: Sequence[str], matrices: Sequence[Piece], spectra: Sequence[Sequence[Spectrum]], top: int
) -> Iterator[dict[str, Any]]:
    """One record for every matrix of every model."""
    for name, own in zip(names, spectra, strict=True):
        for piece, spectrum in zip(matrices, own, strict=True):
            low, high = spectrum.effective_rank() or (None, None)
            yield {
                "model": name,
                **describe(piece),
                "exact": spectrum.exact,
                "passes": spectrum.passes,
                "residual": spectrum.residual,
                "norm": math.sqrt(spectrum.energy),
                "singular_values": spectrum.values[:top].tolist(),
                **{f"share_{size}": spectrum.share(size) for size in share_sizes(top)},
                "stable_rank": spectrum.stable_rank,
                "effective_rank": low if spectrum.exact else None,
                "effective_rank_low": low,
                "effective_rank_high": high,
                "rank": spectrum.rank,
                **{f"rank_{100 * share:g}_percent": spectrum.rank_at(share) for share in ENERGIES},
            }
