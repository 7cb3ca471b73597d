"""Curves and tables of reinforcement learning from the artifacts of its stages."""

from __future__ import annotations

import json

import pytest
import zstandard

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.report.page import render_page
from megatron_prism.report.records import run_from_artifacts
from megatron_prism.report.reinforcement import frontier_figure, rl_curves, rl_figure, rl_table
from megatron_prism.rl.frontier import frontier


def rl_artifact(folder, name, start, rates, held_out, given_up=False):
    """`rates` of the steps; `held_out` maps a step to math's rate."""
    (folder / name).mkdir()
    lines = [
        {"step": s, "reward": r, "loss": 0.1, "lr": 1e-4, "pass_rate": {"all": r}}
        for s, r in enumerate(rates, 1)
    ]
    lines += [
        {"step": s, "evaluation": "held_out", "pass_rate": {"math": r, "all": r / 2}, "answers": {"math": 4}}
        for s, r in held_out.items()
    ]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    receipt = Receipt(
        "rl", f"{name}-1", name, {}, {"model": start}, metrics={"given_up": given_up}, wall_seconds=75.0
    )
    return Artifact(folder / name, receipt)


@pytest.fixture
def artifacts(tmp_path):
    base = Artifact(tmp_path, Receipt("train", "base-1", "base", {}, {}))
    curves = [
        {"domain": "math", "count": 0, "prompts": 9, "points": [[0, 0.02], [2, 0.25]]},
        {"domain": "math", "count": 1, "prompts": 5, "points": [[0, 0.1], [2, 0.5]]},
    ]
    return {
        "base": base,
        "rl_mid": rl_artifact(tmp_path, "rl_mid", "gone", [0.3, 0.4], {0: 0.25, 2: 0.5}),
        "rl_base": rl_artifact(tmp_path, "rl_base", "base-1", [0.0, 0.0], {0: 0.0, 2: 0.0}, given_up=True),
        "frontier": Artifact(
            tmp_path, Receipt("frontier", "f-1", "frontier", {}, {}, metrics={"curves": curves})
        ),
    }


def test_the_table_has_what_was_before_and_after(artifacts):
    table = rl_table(artifacts)
    assert table.columns == ["run", "started from", "steps", "math", "all", "time"]
    assert table.rows[0][:5] == ["rl_mid", "–", "2", "25.0 → 50.0 (+25.0)", "12.5 → 25.0 (+12.5)"]
    assert table.rows[1][:4] == ["rl_base", "base", "2, gave up", "0.0 → 0.0 (0.0)"]


def test_the_figures_name_every_curve(artifacts):
    assert [each.name for each in rl_curves(artifacts)] == ["rl_mid", "rl_base"]
    svg = rl_figure(artifacts)
    assert "rl_mid" in svg
    assert "rl_base" in svg
    assert svg == rl_figure(artifacts)
    svg = frontier_figure(artifacts)
    assert "math, 0 right at the start (9)" in svg
    assert "math, 1 right at the start (5)" in svg
    assert rl_figure({}) == frontier_figure({}) == ""


def test_the_page_shows_both_curves_and_no_loss_of_rl(artifacts):
    page = render_page(run_from_artifacts(artifacts), "a run")
    assert "Reinforcement learning" in page
    assert "solvability frontier" in page
    assert "Training stage <em>rl_mid</em>" not in page
    without = {"base": artifacts["base"]}
    assert "Reinforcement learning" not in render_page(run_from_artifacts(without), "a run")


def test_damage_is_named(artifacts, tmp_path):
    (tmp_path / "rl_mid" / "metrics.jsonl").write_text('{"step": 1, "reward": 1}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl is not a record of an rl stage"):
        rl_figure(artifacts)
    broken = {"f": Artifact(tmp_path, Receipt("frontier", "f", "f", {}, {}, metrics={"curves": [{}]}))}
    with pytest.raises(ArtifactError, match="no metrics of a frontier"):
        frontier_figure(broken)


def write_tracked(run, step, answers):
    folder = run / "tracked"
    folder.mkdir(parents=True, exist_ok=True)
    with zstandard.open(folder / f"step_{step:07d}.jsonl.zst", "wt") as handle:
        for name, correct in answers:
            handle.write(json.dumps({"id": name, "domain": "math", "correct": correct}) + "\n")


def test_prompts_are_grouped_by_the_filter_and_not_by_the_run(tmp_path):
    before = {"a": 0, "b": 0, "c": 1, "d": 7}
    # By the first evaluation of the run itself, `a` would count as solved.
    write_tracked(
        tmp_path, 0, [("a", True), ("a", False), ("b", False), ("b", False), ("c", False), ("d", True)]
    )
    write_tracked(
        tmp_path, 20, [("a", True), ("a", True), ("b", True), ("b", False), ("c", True), ("d", True)]
    )
    assert frontier(tmp_path, before, [0, 1]) == [
        {"domain": "math", "count": 0, "prompts": 2, "points": [[0, 0.25], [20, 0.75]]},
        {"domain": "math", "count": 1, "prompts": 1, "points": [[0, 0.0], [20, 1.0]]},
    ]
    with pytest.raises(ArtifactError, match="'c' is not in the `difficulty` input"):
        frontier(tmp_path, {"a": 0, "b": 0}, [0])
    with pytest.raises(ArtifactError, match="give the rl stage `tracked` prompts"):
        frontier(tmp_path / "nothing", before, [0])
