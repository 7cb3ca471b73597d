"""Coordinates of a landscape, and what its document says of planted scores."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, pairwise

import numpy as np
import pytest
from scipy.stats import ttest_rel

from megatron_prism.analysis.landscape.points import (
    GRID,
    PATH_A,
    PATH_B,
    Point,
    coordinates,
    grid_points,
    path_points,
)
from megatron_prism.analysis.landscape.summary import Plane, landscape_analysis
from megatron_prism.analysis.stages.landscape import AnalyzeLandscape
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.scores import write_scores
from megatron_prism.evaluation.statistics.intervals import mean_rate
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.verification.problems import Problem

MODELS = np.random.default_rng(0).normal(size=(3, 50))


def weight_of(point):
    """The formula of the paper's section 10.1, as it is written there."""
    base, midtrain, rl = MODELS
    return base + float(point.a) * (midtrain - base) + float(point.b) * (rl - midtrain)


def test_weights_are_those_of_the_papers_formula_and_sum_to_one():
    for point in [*path_points(PATH_A, PATH_B), *chain(*grid_points(GRID, GRID))]:
        weights = point.weights(3)
        assert sum(weights) == 1
        mixed = sum(float(weight) * model for weight, model in zip(weights, MODELS, strict=True))
        np.testing.assert_allclose(mixed, weight_of(point), atol=1e-12)


def test_the_path_visits_the_models_and_the_grid_is_centred_at_the_mid_trained_one():
    path = path_points(PATH_A, PATH_B)
    assert len(path) == 11
    assert [point.given(3) for point in path] == [0, *[None] * 5, 1, None, None, None, 2]
    assert [point.given(2) for point in path_points(["0", "1/2", "1"], [])] == [0, None, 1]
    base, midtrain, rl = MODELS
    for beta, row in zip(GRID, grid_points(GRID, GRID), strict=True):
        for alpha, point in zip(GRID, row, strict=True):
            wanted = (
                midtrain
                + float(Fraction(alpha)) * (rl - midtrain)
                + float(Fraction(beta)) * (base - midtrain)
            )
            np.testing.assert_allclose(weight_of(point), wanted, atol=1e-12)
            assert point.given(3) is None


def test_points_that_path_and_grid_share_are_one():
    plane = Plane(
        ("base", "midtrain", "rl"), ["0", "1/2", "1"], ["1/2", "1"], ["0", "1/2", "1"], ["0", "1/2", "1"]
    )
    assert len(plane.path) == 5
    assert len(plane.points) == 9
    # 0.5 of YAML and 1/2 of the command line are one point, and no two points have one name.
    assert coordinates([0.5, "1/6", "-0.30"], "path_a") == ["1/2", "1/6", "-3/10"]
    names = [
        Point(Fraction(a), Fraction(b)).name
        for a, b in pairwise(["1/6", "0.1", "-3/10", "16", "-1/6", "1.3"])
    ]
    assert names == ["a1over6_b0.1", "a0.1_b-0.3", "a-0.3_b16", "a16_b-1over6", "a-1over6_b1.3"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path_a": [0, "1/0"]}, "path_a"),
        ({"path_a": [float("nan")]}, "path_a: 'nan' is not a finite number"),
        ({"path_b": ["0.5", "1/2"]}, "path_b: 0.5, 1/2: a number occurs twice"),
        ({"grid_alpha": [1e9]}, "grid_alpha: 1000000000.0 is beyond 10 times"),
        ({"grid_beta": []}, "give both axes of the grid"),
        ({"path_a": [], "path_b": [], "grid_alpha": [], "grid_beta": []}, "no point is left"),
        ({"engine": EngineConfig("openai", {"base_url": "x", "model": "y"})}, "a server has one model"),
        ({"suites": ["a", "a"]}, "a suite occurs twice"),
        ({"dtype": "fp8"}, "dtype"),
    ],
)
def test_fields_without_a_meaning_are_refused(fields, said):
    with pytest.raises(ConfigError) as raised:
        AnalyzeLandscape(**fields)
    assert said in str(raised.value)


def test_the_document_has_rates_means_and_barriers_of_planted_scores(tmp_path):
    plane = Plane(("base", "midtrain", "rl"), ["0", "1/2", "1"], ["1/2", "1"], [], [])
    generator = np.random.default_rng(4)
    problems = [Problem(f"p{number}", "math", "?", "math", "1") for number in range(40)]
    plans = [SuitePlan(suite, problems, SamplingParams(), 4, [0] * 40) for suite in ("one", "two")]
    right = {}
    for point, rate in zip(plane.path, (0.1, 0.15, 0.7, 0.9, 0.8), strict=True):
        folder = tmp_path / point.name
        folder.mkdir()
        scores, counts = {}, {}
        for suite in ("one", "two"):
            found = right[point, suite] = generator.binomial(4, rate, 40) / 4
            estimate = mean_rate(found)
            counts[suite] = {f"p{n}": (4 * float(value), 4) for n, value in enumerate(found)}
            scores[suite] = {
                **{"pass_rate": estimate.rate, "low": estimate.low, "high": estimate.high},
                **{"interval": estimate.interval, "mean_tokens": 7.0, "truncated": 0.0},
            }
        write_scores(folder, {"suites": scores}, counts)
    made = landscape_analysis(
        plane, lambda point: tmp_path / point.name, plans, confidence=0.95, details={"engine": "megatron"}
    )
    document = made.document
    for point, found in zip(plane.path, document["points"], strict=True):
        means = [right[point, suite].mean() for suite in ("one", "two")]
        assert [found["suites"][suite]["value"] for suite in ("one", "two")] == pytest.approx(
            means, abs=1e-12
        )
        assert found["mean"]["value"] == pytest.approx(np.mean(means), abs=1e-12)
        assert found["mean"]["low"] < found["mean"]["value"] < found["mean"]["high"]
    assert [found["model"] for found in document["points"]] == ["base", None, "midtrain", None, "rl"]
    barrier = next(each for each in document["barriers"] if (each["from"], each["suite"]) == ("base", "one"))
    first, middle, last = (right[point, "one"] for point in plane.path[:3])
    line = (first + last) / 2
    reference = ttest_rel(line, middle).confidence_interval(0.95)
    assert barrier["value"] == pytest.approx((line - middle).mean(), abs=1e-12)
    assert (barrier["low"], barrier["high"]) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert barrier["at"] == 0.5
    # Between the last two models the middle is above the line: a rise, not a barrier.
    assert next(each for each in document["barriers"] if each["from"] == "midtrain")["value"] < 0
    assert len(made.rows["points"]) == 10
