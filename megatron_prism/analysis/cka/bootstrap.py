"""How far CKA varies with the choice of inputs: its values on random halves of them.

The paper (section 10.2) takes 20 resamples of 100 of its 200 inputs. It does not say whether an input can be drawn
twice. Here it cannot: equal rows would raise CKA, and "100 of 200" reads like it. For halves drawn so, the standard
deviation of a mean is its standard error for all inputs, because Var = (s^2 / m)(1 - m/n), and m = n/2.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_prism.analysis.cka.similarity import recentred

# The interval of the percentiles.
COVERAGE = 0.95


@dataclass(frozen=True)
class Spread:
    """CKA over resamples. Its mean is that of the smaller samples, whose bias is larger than that of all inputs.

    Attributes:
        mean: of the resamples.
        std: with n - 1.
        low: the 2.5th percentile, interpolated between resamples.
        high: the 97.5th.
    """

    mean: float
    std: float
    low: float
    high: float


def draw_resamples(inputs: int, size: int, resamples: int, seed: int) -> Tensor:
    """`[resamples, size]`: numbers of inputs, none twice in a row. A seed gives the same numbers everywhere."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([generator.choice(inputs, size, replace=False) for _ in range(resamples)])
    )


def resampled(grams: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
    """The centred Gram matrices of every resample, `[resamples, size, size]`, divided by their norms.

    A resample whose inputs all have the same representation has the norm 0, and NaN here.

    Args:
        grams: `[inputs, inputs]` of each representation.
        chosen: of `draw_resamples`.
    """
    found = []
    for whole in grams:
        part = recentred(whole[chosen[:, :, None], chosen[:, None, :]])
        norms = torch.linalg.matrix_norm(part)
        # What centring leaves of equal rows is rounding: some eps of the largest product in each element.
        largest = whole.diagonal()[chosen].amax(dim=1)
        rounding = chosen.shape[1] ** 2 * torch.finfo(part.dtype).eps * largest
        norms = norms.where(norms > rounding, torch.nan)
        found.append(part / norms[:, None, None])
    return found


def spread(first: Tensor, second: Tensor) -> Spread | None:
    """The spread of CKA from two outputs of `resampled`; None if it is not defined for one of the
    resamples, of which there are two or more."""
    values = (first * second).sum(dim=(1, 2))
    if not bool(values.isfinite().all()):
        return None
    found = values.tolist()
    low, high = np.quantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Spread(
        mean=statistics.fmean(found),
        std=statistics.stdev(found),
        low=float(low),
        high=float(high),
    )
