"""Active sets that are planted, their overlaps counted by sets of Python, and folders that are no steps of one run."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from fractions import Fraction

import numpy
import pytest
import torch
from planted import WEIGHTS, analyze, make_base, moved, refusal, set_element
from safetensors.torch import load_file
from tiny_models import make_checkpoint

from megatron_prism.analysis import trajectory
from megatron_prism.analysis.figures import inline_svg
from megatron_prism.analysis.result import write_analysis
from megatron_prism.analysis.run_steps import find_steps, is_start
from megatron_prism.analysis.stages.trajectory import AnalyzeTrajectory
from megatron_prism.analysis.trajectory import RULES, Overlap, active, active_share, movement
from megatron_prism.analysis.trajectory_summary import analyze_trajectory
from megatron_prism.analysis.view import view
from megatron_prism.analysis.weight_summary import analyze_weights
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import ConfigError
from megatron_prism.merging import blocks
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.training.saved_state import Record, write_record

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS = (10, 20, 40)


def later(seed: int, step: int):
    """The update of a run's step: 1 in more and more elements; the last step takes some back. Weights are below 251."""

    def update(name: str, weights: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1000 + len(name) * weights.numel())
        order = torch.rand(weights.shape, generator=generator)
        chosen = order < step / 80
        if step == STEPS[-1]:
            chosen &= order > 0.05
        return chosen.double() * (2 if seed == 1 else 1)

    return update


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each dtype: the start, a run with weights by step, and the end of a second run."""
    found = {}
    for dtype in DTYPES:
        root = tmp_path_factory.mktemp(dtype)
        start = make_base("llama", root / "start", DTYPES[dtype], most=250)
        (root / "run/weights").mkdir(parents=True)
        for step in STEPS:
            moved(start, root / f"run/weights/step_{step:07d}", later(1, step))
        moved(start, root / "other", later(2, STEPS[-1]))
        found[dtype] = (start, root / "run", root / "other")
    return found


@pytest.fixture
def run(runs):
    return runs["bf16"]


def whole_numbers(folder) -> numpy.ndarray:
    """All weights of a folder in one row of integers, so that 1 % is compared without rounding."""
    state = load_file(folder / WEIGHTS)
    return numpy.concatenate([state[name].double().numpy().ravel() for name in sorted(state)]).astype(
        numpy.int64
    )


def sets_of(start, folder) -> dict[str, set[int]]:
    """Active elements by both rules."""
    old, new = whole_numbers(start), whole_numbers(folder)
    return {
        "relative": set(numpy.flatnonzero((100 * abs(new - old) >= abs(old)) & (new != old))),
        "exact": set(numpy.flatnonzero(new != old)),
    }


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_active_sets_and_overlaps_are_those_of_plain_sets(runs, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 700)
    monkeypatch.setattr(trajectory, "CHUNK", 97)
    start, run, other = runs[dtype]
    analysis = analyze_trajectory(start, [run], [other])
    steps = analysis.document["trajectory"]
    assert [each["step"] for each in steps] == list(STEPS)
    truth = [sets_of(start, run / f"weights/step_{step:07d}") for step in STEPS]
    elements = len(whole_numbers(start))
    for step, sets in zip(steps, truth, strict=True):
        assert step["all"]["elements"] == elements
        assert step["all"]["active"] == pytest.approx(len(sets["relative"]) / elements, abs=1e-12)
        assert step["all"]["active_exact"] == pytest.approx(len(sets["exact"]) / elements, abs=1e-12)
    # Some elements changed by less than 1 %, and the last step has fewer of them than it would have kept.
    assert 0.3 < len(truth[0]["relative"]) / len(truth[0]["exact"]) < 0.9
    for rule in RULES:
        first, second, last = (each[rule] for each in truth)
        before = steps[1]["all"]["with_previous"][rule]
        assert (before["first"], before["second"], before["both"]) == (
            len(first),
            len(second),
            len(first & second),
        )
        assert before["of_first"] == 1
        end = steps[2]["all"]["with_previous"][rule]
        assert end["of_first"] == pytest.approx(len(second & last) / len(second), abs=1e-12)
        assert end["of_first"] < 0.9
        assert end["jaccard"] == pytest.approx(jaccard(second, last), abs=1e-12)
        assert steps[0]["all"]["with_last"][rule]["jaccard"] == pytest.approx(jaccard(first, last), abs=1e-12)
        assert steps[1]["all"]["with_last"][rule] == end
        against = analysis.document["against"][0]["all"]["overlap"][rule]
        theirs = sets_of(start, other)[rule]
        assert against["jaccard"] == pytest.approx(jaccard(last, theirs), abs=1e-12)
        assert against["of_second"] == pytest.approx(len(last & theirs) / len(theirs), abs=1e-12)
        # The elements of both runs were drawn independently; at the same |w| both are active at 1 %, or neither is.
        assert against["both"] == pytest.approx(against["size_chance_both"], rel=0.05)
    relative = analysis.document["against"][0]["all"]["overlap"]["relative"]
    assert relative["both"] > 1.15 * relative["chance_both"], "independent only if sizes are respected"
    assert (steps[0]["all"]["with_previous"], steps[2]["all"]["with_last"]) == (None, None)
    norms = [
        numpy.linalg.norm(whole_numbers(run / f"weights/step_{step:07d}") - whole_numbers(start))
        for step in STEPS
    ]
    for step, norm in zip(steps, norms, strict=True):
        assert step["all"]["norm"] == pytest.approx(norm, rel=1e-9)
        assert step["all"]["share_of_final"] == pytest.approx(norm / norms[-1], rel=1e-9)


def test_the_same_names_are_the_same_numbers_as_in_weights(run):
    start, folder, _ = run
    folders = [folder / f"weights/step_{step:07d}" for step in STEPS]
    expected = analyze_weights(start, folders).document["models"]
    found = analyze_trajectory(start, folders[::-1]).document["trajectory"]
    for mine, theirs in zip(found, expected, strict=True):
        for group in ("components", "sub_components"):
            for name, numbers in {"all": theirs["all"], **theirs[group]}.items():
                own = mine["all"] if name == "all" else mine[group][name]
                assert {key: own[key] for key in numbers} == numbers
                assert own["active"] == pytest.approx(1 - numbers["unchanged"][2], abs=1e-15)


def test_the_chance_of_sets_is_the_mean_over_all_arrangements():
    """Two sets of 7 weights, of which four are about 1 and three about 8, against every reordering of the second."""
    base = torch.tensor([1.0, 1.1, 1.2, 1.9, 8.0, 9.0, 10.0])
    first, second = [1, 1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1, 0]
    changed = [base + torch.tensor(each) for each in (first, second)]
    found = movement(base, changed, [(0, 1)]).overlap((0, 1), 0, "exact")

    def common(order):
        return sum(one * second[place] for one, place in zip(first, order, strict=True))

    anywhere = [common(order) for order in itertools.permutations(range(7))]
    assert found.chance == pytest.approx(numpy.mean(anywhere), abs=1e-9)
    within = [
        common((*low, *high))
        for low in itertools.permutations(range(4))
        for high in itertools.permutations(range(4, 7))
    ]
    assert found.size_chance == pytest.approx(numpy.mean(within), abs=1e-9)
    assert found.size_chance != found.chance
    assert found.chance_jaccard == pytest.approx(found.chance / (4 + 3 - found.chance), abs=1e-12)


def test_the_limit_belongs_to_the_active_set_and_zeros_are_counted():
    base = torch.tensor([100.0, 100.0, 0.0, 0.0, -100.0, 50.0])
    other = torch.tensor([101.0, 100.5, 0.0, 1e-30, -99.0, 50.0])
    assert active(base, other).tolist() == [True, False, False, True, True, False]
    sums = movement(base, [other, base], [(0, 1)])
    assert sums.changes[0].sparsity[0.01] == 0.5
    with_nothing = sums.overlap((0, 1), 0, "relative")
    assert (with_nothing.first, with_nothing.jaccard, with_nothing.of_second) == (3, 0, None)
    assert Overlap().jaccard is Overlap().chance_jaccard is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_limit_is_drawn_without_rounding(dtype):
    """Changes of about 1 %, against fractions; in fp32 arithmetic, some of fp32 weights would be on the wrong side."""
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(4000, generator=generator).to(DTYPES[dtype])
    other = (base.double() * 1.01).to(base.dtype)
    truth = [
        100 * abs(Fraction(new) - Fraction(old)) >= abs(Fraction(old))
        for old, new in zip(base.tolist(), other.tolist(), strict=True)
    ]
    assert 0.2 < sum(truth) / len(truth) < 0.8
    assert active(base, other).tolist() == truth
    found = movement(base, [other], [])
    assert int(found.active[0].sum()) == round(active_share(found.changes[0]) * len(base)) == sum(truth)


def test_a_run_of_ours_with_its_finished_model(run, tmp_path):
    """Megatron folders in weights/, a save that was cut short, and the end of the run after the last kept step."""
    start, folder, other = run
    ours = tmp_path / "rl"
    for step, source in ((10, folder / "weights/step_0000010"), (20, folder / "weights/step_0000020")):
        out = ours / f"weights/step_{step:07d}"
        out.mkdir(parents=True)
        import_checkpoint(source, out)
    (ours / "weights/step_0000030.partial").mkdir()
    assert [each.step for each in find_steps([ours])] == [10, 20]
    import_checkpoint(folder / "weights/step_0000040", ours)
    write_record(ours / "checkpoint", Record({"step": 40}))
    assert [each.step for each in find_steps([ours])] == [10, 20, 40]
    write_record(ours / "checkpoint", Record({"step": 20}))
    assert [each.step for each in find_steps([ours])] == [10, 20], "the end is the last kept step"
    write_record(ours / "checkpoint", Record({"step": 40}))
    code, said, _ = analyze("trajectory", start, ours, "--against", other, "--json", tmp_path / "found.json")
    assert code == 0
    assert "overlap of the active sets at step 40 with those of other" in said
    document = json.loads((tmp_path / "found.json").read_text())
    expected = analyze_trajectory(start, [folder], [other]).document
    for mine, theirs in zip(document["trajectory"], expected["trajectory"], strict=True):
        assert mine["all"] == json.loads(json.dumps(theirs["all"]))
    drawings = view(document).drawings
    assert set(drawings) == {"distance_by_step", "overlap_by_step", "overlap_between_runs"}
    jaccard = document["against"][0]["all"]["overlap"]["relative"]["jaccard"]
    assert f">{jaccard:.3f}<" in inline_svg(drawings["overlap_between_runs"], "runs")
    assert ">share of the final L2<" in inline_svg(drawings["overlap_by_step"], "overlap")
    rows = analyze_trajectory(start, [ours]).rows["steps"]
    row = next(
        each for each in rows if each["step"] == 20 and each["sub_component"] == "k" and each["layer"] == 1
    )
    name = "model.layers.1.self_attn.k_proj.weight"
    old, new = (load_file(each / WEIGHTS)[name].double() for each in (start, folder / "weights/step_0000020"))
    assert row["delta"] == pytest.approx(float((new - old).norm() / old.norm()), abs=1e-9)
    assert row["active"] == pytest.approx(float(active(old, new).double().mean()), abs=1e-12)

    # The receipts say with which model a run of ours began.
    def receipt(path, fingerprint, kind="rl", **inputs):
        (path / "receipt.json").write_text(
            json.dumps({"kind": kind, "fingerprint": fingerprint, "inputs": inputs})
        )

    began = tmp_path / "began"
    shutil.copytree(start, began)
    receipt(began, "f" * 64, "train")
    assert is_start(began, ours / "weights/step_0000010") is None
    receipt(ours, "b" * 64, model="f" * 64)
    assert is_start(began, ours / "weights/step_0000010") is True
    receipt(ours, "b" * 64, model="e" * 64)
    assert is_start(began, ours) is False
    assert any("is not the model with which" in each for each in analyze_trajectory(began, [ours]).remarks)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(other, elsewhere)
    for model, said in (("d" * 64, True), ("f" * 64, False)):
        receipt(elsewhere, "c" * 64, model=model)
        remarks = analyze_trajectory(began, [folder], [elsewhere]).remarks
        assert any(f"with which {elsewhere} began" in each for each in remarks) is said


def test_the_stage_compares_runs_without_steps_too(run):
    start, folder, other = run
    nothing = Receipt("rl", "0" * 64, "rl", {}, {})
    inputs = {
        name: Artifact(path, nothing)
        for name, path in (
            ("base", start),
            ("rl2", other),
            ("rl", folder),
            ("end", folder / "weights/step_0000040"),
        )
    }
    found = AnalyzeTrajectory(start="base", trained="rl").analyze(
        {key: inputs[key] for key in ("base", "rl2", "rl")}
    )
    assert found.summary["steps"] == list(STEPS)
    assert list(found.summary["against"]) == ["rl2"]
    only = AnalyzeTrajectory(start="base", trained="end").analyze(
        {key: inputs[key] for key in ("base", "rl2", "end")}
    )
    assert only.summary["against"] == found.summary["against"]
    with pytest.raises(ConfigError, match="no input has this name; known: base, end"):
        AnalyzeTrajectory(start="base", trained="lr").analyze(inputs)
    with pytest.raises(ConfigError, match="is the run itself"):
        AnalyzeTrajectory(start="rl", trained="rl")


def test_unusable_input_is_one_line(run, tmp_path):
    start, folder, other = run
    first, second, _ = (folder / f"weights/step_{step:07d}" for step in STEPS)
    assert "keeps no weights by step" in refusal("trajectory", start, other)
    assert "its name has no number of a step" in refusal("trajectory", start, first, other)
    assert "the folder of a run stands alone" in refusal("trajectory", start, folder, first)
    assert "is the base itself" in refusal("trajectory", first, folder)
    with pytest.raises(ConfigError, match="is the end of this run"):
        analyze_trajectory(folder, [folder])
    (tmp_path / "link").symlink_to(folder)
    assert "is this run itself" in refusal("trajectory", start, folder, "--against", tmp_path / "link")
    assert "no such folder" in refusal("trajectory", start, first, tmp_path / "step_7")
    twin = tmp_path / "twin/weights/step_0000010"
    twin.parent.mkdir(parents=True)
    shutil.copytree(first, twin)
    assert "is step 10, and so is" not in refusal("trajectory", start, second, twin)
    assert f"{twin}: is a step of another run than {second}" in refusal("trajectory", start, second, twin)
    same = shutil.copytree(first, tmp_path / "rl-step10")
    assert f"{same}: is step 10, and so is {first}" in refusal("trajectory", start, first, same)
    assert "has 1 of the 2 or more steps that a trajectory needs" in refusal(
        "trajectory", start, tmp_path / "twin"
    )
    wrong = make_checkpoint("granite", tmp_path / "step-30", torch.bfloat16)
    assert "only models of one architecture" in refusal("trajectory", start, first, wrong)
    name = "model.layers.2.mlp.up_proj.weight"
    broken = moved(start, tmp_path / "step-60", lambda name, weights: torch.zeros_like(weights))
    set_element(broken, name, (5, 0), -math.inf)
    assert f"{broken}: tensor '{name}' holds -inf in row 5" in refusal("trajectory", start, first, broken)


def test_a_run_that_moved_no_weight_has_tables_and_figures(tmp_path):
    """As in reinforcement learning without a single reward; nothing divides by the distance of 0."""
    start = make_base("llama", tmp_path / "start", torch.float32)
    for step in (1, 2):
        shutil.copytree(start, tmp_path / f"run/weights/step_{step:07d}")
    analysis = analyze_trajectory(start, [tmp_path / "run"])
    write_analysis(analysis, tmp_path)
    assert [step["all"]["norm_delta"] for step in analysis.document["trajectory"]] == [0, 0]
    assert list((tmp_path / "figures").glob("*.png"))
