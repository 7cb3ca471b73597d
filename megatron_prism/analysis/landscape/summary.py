"""The document of a landscape, from the scores of its points: pass rates with intervals, and the barrier on the path.

All points answer the same problems with the same random numbers, so differences between points are less noisy than
their intervals suggest; the barrier's interval is of differences by problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_prism.analysis.landscape.points import Point, grid_points, path_points
from megatron_prism.analysis.result import Analysis
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.scores import read_problems, read_scores
from megatron_prism.evaluation.statistics.averages import weighted_mean
from megatron_prism.evaluation.statistics.paired import paired_test

ROLES = ("base", "midtrain", "rl")


@dataclass(frozen=True)
class Plane:
    """Which points a landscape has, and the names of its models.

    Attributes:
        labels: of base, mid-trained and RL model, or of base and one other.
    """

    labels: Sequence[str]
    path_a: Sequence[str]
    path_b: Sequence[str]
    grid_alpha: Sequence[str]
    grid_beta: Sequence[str]

    @property
    def path(self) -> list[Point]:
        """The points of the path, in order."""
        return list(dict.fromkeys(path_points(self.path_a, self.path_b)))

    @property
    def grid(self) -> list[list[Point]]:
        """The points of the grid, `[beta][alpha]`."""
        return grid_points(self.grid_alpha, self.grid_beta)

    @property
    def points(self) -> list[Point]:
        """Every point once: the path's in order, then the grid's."""
        return list(dict.fromkeys([*self.path, *(point for row in self.grid for point in row)]))


def landscape_analysis(
    plane: Plane,
    folder: Callable[[Point], Path],
    plans: Sequence[SuitePlan],
    *,
    confidence: float,
    details: Mapping[str, Any],
    remarks: Sequence[str] = (),
) -> Analysis:
    """The analysis of points that have been evaluated.

    Args:
        folder: where a point's evaluation is kept.
        details: further entries of the document.
    """
    points = [_point(plane, point, folder(point)) for point in plane.points]
    index = {point: number for number, point in enumerate(plane.points)}
    values = {
        "models": dict(zip(ROLES, plane.labels, strict=False)),
        "confidence": confidence,
        "suites": {
            plan.name: {
                "problems": len(plan.problems),
                "samples": plan.samples,
                "max_new_tokens": plan.params.max_new_tokens,
                "temperature": plan.params.temperature,
                "top_p": plan.params.top_p,
                "seed": plan.params.seed,
            }
            for plan in plans
        },
        **details,
        "points": points,
        "path": [index[point] for point in plane.path],
        "grid": {
            "alpha": [float(point.b) for point in plane.grid[0]] if plane.grid else [],
            "beta": [float(1 - row[0].a) for row in plane.grid if row],
            "points": [[index[point] for point in row] for row in plane.grid],
        },
        "barriers": _barriers(plane, folder, [plan.name for plan in plans], confidence),
    }
    rows = [
        {
            **{key: point[key] for key in ("name", "a", "b", "model")},
            "suite": suite,
            **{key: found[key] for key in ("value", "low", "high", "mean_tokens", "truncated")},
        }
        for point in points
        for suite, found in point["suites"].items()
    ]
    return Analysis("landscape", _summary(points, values["barriers"]), values, {"points": rows}, remarks)


def _point(plane: Plane, point: Point, folder: Path) -> dict[str, Any]:
    scores = read_scores(folder)["suites"]
    given = point.given(len(plane.labels))
    rates = [(1 / len(scores), each["pass_rate"], each["low"], each["high"]) for each in scores.values()]
    mean, low, high = weighted_mean(rates)
    return {
        "name": point.name,
        "a": float(point.a),
        "b": float(point.b),
        "exact": [str(point.a), str(point.b)],
        "model": None if given is None else plane.labels[given],
        "mean": {"value": mean, "low": max(0.0, low), "high": min(1.0, high)},
        "suites": {
            suite: {
                "value": each["pass_rate"],
                "low": each["low"],
                "high": each["high"],
                "interval": each["interval"],
                "mean_tokens": each["mean_tokens"],
                "truncated": each["truncated"],
            }
            for suite, each in scores.items()
        },
    }


def _barriers(
    plane: Plane, folder: Callable[[Point], Path], suites: Sequence[str], confidence: float
) -> list[dict[str, Any]]:
    """For each leg of the path with both ends: how far the pass rate falls below the straight line between them."""
    legs = [("a", [point for point in plane.path if point.b == 0 and 0 <= point.a <= 1])]
    if len(plane.labels) > 2:
        legs.append(("b", [point for point in plane.path if point.a == 1 and 0 <= point.b <= 1]))
    found = []
    for axis, points in legs:
        between = [point for point in points if 0 < getattr(point, axis) < 1]
        if len(points) < 3 or len(between) != len(points) - 2:
            continue
        rates = {point: read_problems(folder(point)) for point in points}
        names = plane.labels[:2] if axis == "a" else plane.labels[1:]
        for suite in suites:
            by_point = {point: _by_problem(rates[point][suite]) for point in points}
            first, last = by_point[points[0]], by_point[points[-1]]
            lines = {
                point: (1 - float(getattr(point, axis))) * first + float(getattr(point, axis)) * last
                for point in between
            }
            # The first of equal ones; the largest fall, which may be a rise.
            place = max(between, key=lambda point: float((lines[point] - by_point[point]).mean()))
            test = paired_test(by_point[place], lines[place], confidence) if len(first) > 1 else None
            found.append(
                {
                    "from": names[0],
                    "to": names[1],
                    "suite": suite,
                    "at": float(getattr(place, axis)),
                    "value": float((lines[place] - by_point[place]).mean()),
                    "low": None if test is None else test.low,
                    "high": None if test is None else test.high,
                }
            )
    return found


def _by_problem(problems: Mapping[str, tuple[float, int]]) -> Any:
    """The rates of the problems, in the order of their ids."""
    return np.array([right / samples for _, (right, samples) in sorted(problems.items())])


def _summary(points: Sequence[Mapping[str, Any]], barriers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = max(points, key=lambda point: float(point["mean"]["value"]))
    return {
        "points": len(points),
        "best": {"a": best["a"], "b": best["b"], "mean": best["mean"]["value"]},
        "models": {point["model"]: point["mean"]["value"] for point in points if point["model"]},
        "barriers": {f"{each['from']} to {each['to']}, {each['suite']}": each["value"] for each in barriers},
    }
