"""Reinforcement learning in the report: the curves of all runs, held-out pass rates, and the solvability frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.figures import PALETTE, canvas, smooth
from megatron_prism.report.tables import DASH, Table, duration, signed
from megatron_prism.rl.record import evaluations, read_metrics

RL_KIND, FRONTIER_KIND = "rl", "frontier"
HELD_OUT, ALL = "held_out", "all"
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curves:
    """One run: the pass rate of each step's answers, and held-out pass rates by domain, in 0..1.

    `given_up`: the run ended early, because all groups had equal rewards for too many steps.
    """

    name: str
    start: str
    steps: Points
    held_out: dict[str, Points]
    seconds: float
    given_up: bool


def rl_curves(artifacts: Mapping[str, Artifact]) -> list[Curves]:
    """The curves of every run, in order; `start` is the stage that made its initial model.

    Raises:
        ArtifactError: if a run's metrics are damaged.
    """
    makers = {artifact.fingerprint: name for name, artifact in artifacts.items()}
    found = []
    for name, artifact in artifacts.items():
        if artifact.kind != RL_KIND:
            continue
        try:
            lines = read_metrics(artifact.path)
            steps = [(int(x["step"]), float(x["pass_rate"][ALL])) for x in lines if "reward" in x]
            held_out: dict[str, Points] = {}
            for step, rates in sorted(evaluations(lines, HELD_OUT).items()):
                for domain, rate in rates.items():
                    held_out.setdefault(domain, []).append((step, float(rate)))
        except (KeyError, TypeError, ValueError) as problem:
            raise ArtifactError(
                f"{artifact.path}: metrics.jsonl is not a record of an rl stage ({problem!r}); run the stage again"
            ) from None
        start = makers.get(artifact.receipt.inputs.get("model", ""), DASH)
        given_up = bool(artifact.metrics.get("given_up"))
        found.append(Curves(name, start, steps, held_out, artifact.receipt.wall_seconds, given_up))
    return found


def rl_table(artifacts: Mapping[str, Artifact]) -> Table:
    """A row per run; per domain the held-out pass rate before and after, and the change in points."""
    curves = rl_curves(artifacts)
    domains = list(dict.fromkeys(domain for each in curves for domain in each.held_out))
    rows = []
    for each in curves:
        cells = []
        for domain in domains:
            points = each.held_out.get(domain)
            if not points:
                cells.append(DASH)
                continue
            before, after = 100 * points[0][1], 100 * points[-1][1]
            cells.append(f"{before:.1f} → {after:.1f} ({signed((after - before) / 100)})")
        steps = f"{len(each.steps)}, gave up" if each.given_up else str(len(each.steps))
        rows.append([each.name, each.start, steps, *cells, duration(each.seconds)])
    return Table(
        ["run", "started from", "steps", *domains, "time"],
        rows,
        [False, False, True, *[False] * len(domains), True],
    )


def rl_figure(artifacts: Mapping[str, Artifact]) -> str:
    """Pass rates over the steps, one colour per run: of the sampled answers, and of held-out problems."""
    curves = rl_curves(artifacts)
    if not curves:
        return ""
    with canvas("rl", 9.4, 3.0, 2) as (axes, render):
        for number, each in enumerate(curves):
            colour = PALETTE[number % len(PALETTE)]
            steps = [step for step, _ in each.steps]
            rates = [100 * rate for _, rate in each.steps]
            axes[0].plot(steps, rates, color=colour, linewidth=0.7, alpha=0.4)
            axes[0].plot(steps, smooth(rates, 0.1), color=colour, linewidth=1.8, label=each.name)
            points = each.held_out.get(ALL, [])
            axes[1].plot(
                [step for step, _ in points],
                [100 * rate for _, rate in points],
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=1.6,
                label=each.name,
            )
        axes[0].set_title("answers of each step (%)")
        axes[1].set_title("held-out problems (%)")
        for axis in axes:
            axis.set_xlabel("step")
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
        axes[0].legend(loc="best")
        return render()


def frontier_figure(artifacts: Mapping[str, Artifact]) -> str:
    """Pass rates over the steps of prompts that were rarely solved at the start; one panel per frontier stage."""
    stages = {name: artifact for name, artifact in artifacts.items() if artifact.kind == FRONTIER_KIND}
    if not stages:
        return ""
    with canvas("frontier", 9.4, 3.0, len(stages)) as (axes, render):
        for axis, (name, artifact) in zip(axes, stages.items(), strict=True):
            for number, curve in enumerate(_frontier(artifact)):
                axis.plot(
                    [step for step, _ in curve["points"]],
                    [100 * rate for _, rate in curve["points"]],
                    color=PALETTE[number % len(PALETTE)],
                    marker="o",
                    markersize=3.5,
                    linewidth=1.6,
                    label=f"{curve['domain']}, {curve['count']} right at the start ({curve['prompts']})",
                )
            axis.set_title(f"{name}: pass rate (%)")
            axis.set_xlabel("step")
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return render()


def _frontier(artifact: Artifact) -> Sequence[Mapping[str, Any]]:
    try:
        curves: Sequence[Mapping[str, Any]] = artifact.metrics["curves"]
        for curve in curves:
            if not {"domain", "count", "prompts", "points"} <= set(curve):
                raise KeyError(str(curve))
    except (KeyError, TypeError) as problem:
        raise ArtifactError(
            f"{artifact.path}: the receipt has no metrics of a frontier stage ({problem!r}); run the stage again"
        ) from None
    return curves
