"""The same run of reinforcement learning in every layout: equal answers, rewards, losses and gradients."""

from __future__ import annotations

import pytest
import rl_layouts
from parallel_runs import results_of
from tiny_rl import MODELS, make_inputs

LAYOUTS = ["padded", "recomputed", "tp2", "tp2sp", "pp2", "pp2vp2", "cp2", "dp2"]
LAYOUTS_OF_FOUR = ["tp2pp2", "tp2sp-cp2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    for kind in MODELS:
        make_inputs(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    return results_of(rl_layouts.main, folder, (1, 2))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_run_as_one_process(runs, kind, layout):
    if kind == "hybrid" and "vp" in layout:
        pytest.skip("a hybrid's layers do not divide into virtual stages")
    same(runs[f"{kind}-{layout}"], runs[f"{kind}-one"])


@pytest.mark.slow
def test_the_same_run_on_four_processes(runs, folder):
    found = results_of(rl_layouts.main, folder, (4,))
    for kind in MODELS:
        for layout in LAYOUTS_OF_FOUR:
            same(found[f"{kind}-{layout}"], runs[f"{kind}-one"])


def same(run, whole):
    for mine, theirs in zip(run, whole, strict=True):
        for exact in ("reward", "mean_length", "max_length", "dropped_groups", "consumed_prompts", "tokens"):
            assert mine[exact] == theirs[exact], (mine["step"], exact)
        for close in ("loss", "grad_norm", "kl", "negative_logprob"):
            assert mine[close] == pytest.approx(theirs[close], rel=2e-4, abs=1e-6), (mine["step"], close)


@pytest.mark.parametrize(("kind", "bound"), [("dense", 1e-4), ("hybrid", 1e-3)])
def test_trainer_and_sampler_agree(runs, kind, bound):
    gaps = {
        name: max(step["gap"]["max_abs"] for step in run)
        for name, run in runs.items()
        if name.startswith(kind)
    }
    print(gaps)
    assert max(gaps.values()) <= bound
    # Trainer and sampler are two programs; a difference of zero would mean that one was compared with itself.
    assert min(gaps.values()) > 0


@pytest.mark.parametrize("kind", MODELS)
def test_there_is_something_to_compare(runs, kind):
    steps = runs[f"{kind}-one"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step["grad_norm"] > 0 and step["dropped_groups"] < 4 for step in steps)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[1]["kl"] > 1e-4
    assert len({step["mean_length"] for step in steps}) > 1


def test_a_sampler_with_wrong_positions_is_stopped(runs):
    assert runs["wrong"].startswith("GateStop: step 1: trainer and sampler disagree")
