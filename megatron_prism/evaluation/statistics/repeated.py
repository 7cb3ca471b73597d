"""Scores of several samples per problem: at least one right of k, and the majority of k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 256


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: unless 1 <= k <= samples and 0 <= correct <= samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} with {correct} correct of {samples} samples is impossible")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(
    answers: Sequence[Hashable | None], correct: Sequence[bool], k: int, seed: int = 0
) -> float:
    """The chance that the most frequent answer of k samples is right; equally frequent ones share it.

    Of more than k samples, the mean over random subsets (without replacement).

    Args:
        answers: what was extracted from each sample, in a form in which equal answers are equal; None has no vote.
        correct: the verdict of each sample.

    Raises:
        ValueError: unless 1 <= k <= samples and both have the same length.
    """
    samples = len(answers)
    if len(correct) != samples or not 1 <= k <= samples:
        raise ValueError(f"majority@{k} of {samples} answers and {len(correct)} verdicts is impossible")
    if k == samples:
        return _majority(answers, correct, range(samples))
    generator = np.random.default_rng(seed)
    subsets = (generator.choice(samples, size=k, replace=False).tolist() for _ in range(DRAWS))
    return math.fsum(_majority(answers, correct, subset) for subset in subsets) / DRAWS


def _majority(answers: Sequence[Hashable | None], correct: Sequence[bool], chosen: Sequence[int]) -> float:
    votes = Counter(answers[index] for index in chosen if answers[index] is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leading = {answer for answer, count in votes.items() if count == most}
    # Samples with the same answer have the same verdict, so any of them says whether the answer is right.
    right = {answers[index] for index in chosen if correct[index]}
    return len(leading & right) / len(leading)
