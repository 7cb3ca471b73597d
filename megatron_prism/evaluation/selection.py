"""The best of several checkpoints by the paper's two rules, with what the choice itself adds to the score.

One rule takes the checkpoint with the best average (Table 11 has the "best-step checkpoint"; that the average decides
is our reading). The other takes for every benchmark the checkpoint that is best there (the project page's pipeline
table): a row that no single model has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.plan import DOMAIN
from megatron_prism.evaluation.scored_model import ScoredModel
from megatron_prism.evaluation.statistics.averages import weighted_mean, weights_of_averages
from megatron_prism.evaluation.statistics.selection import Rates, Selection, select_best

BEST_AVERAGE, BEST_EACH = "best average", "best of each suite"


@dataclass(frozen=True)
class Selected:
    """One number of a selection, in 0..1.

    Attributes:
        rule: how checkpoints were chosen.
        of: the suite, or the average.
        chosen: the checkpoints: one, or one for each suite of an average.
        printed: the score with which they were chosen.
        corrected: the score without what the choice added, with its interval.
        bias: printed - corrected.
    """

    rule: str
    of: str
    chosen: list[str]
    printed: float
    corrected: float
    low: float
    high: float
    bias: float


def select(checkpoints: Mapping[str, ScoredModel], confidence: float = 0.95, seed: int = 0) -> list[Selected]:
    """Both rules for the averages, and the best checkpoint of every suite that all checkpoints have.

    The averages are the paper's two for its six benchmarks, otherwise the mean of the suites of the domain, or of all
    if there are none.

    Args:
        checkpoints: by name, in order; of equally good ones the first is chosen.
        seed: of the random divisions of the problems.

    Raises:
        ArtifactError: if checkpoints share no suite, fewer than two problems of one, or have other numbers of samples.
    """
    names = list(checkpoints)
    rates = _shared_rates(checkpoints)
    each = {
        suite: select_best({suite: of_suite}, {suite: 1.0}, confidence, seed)
        for suite, of_suite in rates.items()
    }
    groups = next(iter(checkpoints.values())).groups
    domain = [suite for suite in rates if groups[suite] == DOMAIN]
    made = []
    for title, weights in _averages(domain or list(rates)).items():
        best = select_best({suite: rates[suite] for suite in weights}, weights, confidence, seed)
        made.append(_described(BEST_AVERAGE, title, [names[best.chosen]], best))
        parts = {suite: each[suite] for suite in weights}
        chosen = [names[part.chosen] for part in parts.values()]
        made.append(_described(BEST_EACH, title, chosen, _weighted(parts, weights)))
    return made + [
        _described(BEST_EACH, suite, [names[found.chosen]], found) for suite, found in each.items()
    ]


def left_out(checkpoints: Mapping[str, ScoredModel]) -> dict[str, int]:
    """Suite -> the number of its problems that were left out, because only some of the checkpoints answered them."""
    models = list(checkpoints.values())
    found = {}
    for suite in models[0].problems:
        if all(suite in each.problems for each in models):
            answered = [set(each.problems[suite]) for each in models]
            found[suite] = len(set.union(*answered)) - len(set.intersection(*answered))
    return {suite: count for suite, count in found.items() if count}


def _described(rule: str, of: str, chosen: list[str], found: Selection) -> Selected:
    bias = found.printed - found.corrected
    return Selected(rule, of, chosen, found.printed, found.corrected, found.low, found.high, bias)


def _averages(suites: Sequence[str]) -> dict[str, dict[str, float]]:
    """The averages that can be formed of these suites, with the weights of the suites."""
    of_paper = {
        title: weights for title, weights in weights_of_averages().items() if set(weights) <= set(suites)
    }
    if of_paper or len(suites) < 2:
        return of_paper
    return {f"mean of {len(suites)} suites": dict.fromkeys(suites, 1 / len(suites))}


def _weighted(parts: Mapping[str, Selection], weights: Mapping[str, float]) -> Selection:
    """The weighted mean of selections that were made separately, on different problems."""
    printed = math.fsum(weights[suite] * part.printed for suite, part in parts.items())
    corrected, low, high = weighted_mean(
        (weights[suite], part.corrected, part.low, part.high) for suite, part in parts.items()
    )
    return Selection(-1, printed, corrected, max(0.0, low), min(1.0, high))


def _shared_rates(checkpoints: Mapping[str, ScoredModel]) -> dict[str, Rates]:
    """Suite -> pass rates `[checkpoints, problems]` on the problems that all checkpoints have."""
    models = list(checkpoints.values())
    suites = [suite for suite in models[0].problems if all(suite in each.problems for each in models)]
    if not suites:
        raise ArtifactError(f"{', '.join(checkpoints)}: there is no suite that all of them have")
    found = {}
    for suite in suites:
        tables = [each.problems[suite] for each in models]
        shared = [problem for problem in tables[0] if all(problem in table for table in tables)]
        if len(shared) < 2:
            raise ArtifactError(
                f"suite '{suite}': the checkpoints share {len(shared)} problems; two or more are needed"
            )
        counts = sorted({table[problem][1] for table in tables for problem in shared})
        if len(counts) > 1:
            raise ArtifactError(f"suite '{suite}': samples per problem differ between checkpoints ({counts})")
        found[suite] = np.array(
            [[right / samples for right, samples in map(table.__getitem__, shared)] for table in tables]
        )
    return found
