"""The same loss curve in every layout, from the same weights; and checkpoints that load in another layout."""

from __future__ import annotations

import pytest
import training_layouts
from parallel_runs import results_of

LAYOUTS = ["tp2", "tp2sp", "pp2", "pp3uneven", "cp2", "dp2", "tp2pp2", "cp2tp2sp"]
# Where the resumed curves begin (training_layouts.py saves halfway).
HALF = training_layouts.STEPS // 2
TOLERANCE = {"dense": 1e-5, "hybrid": 1e-4}


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return results_of(training_layouts.main, tmp_path_factory.mktemp("parity"), training_layouts.LAYOUTS)


def gap(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_losses_as_one_process(curves, kind, layout):
    assert gap(curves[f"{kind}-{layout}"], curves[f"{kind}-one"]) <= TOLERANCE[kind]


def test_an_interleaved_pipeline_too(curves):
    assert gap(curves["dense-pp2vp2"], curves["dense-one"]) <= TOLERANCE["dense"]
    assert gap(curves["dense-pp2vp2-resumed"], curves["dense-one"][HALF:]) <= TOLERANCE["dense"]


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_the_curve_moves_and_a_wrong_chunk_order_is_seen(curves, kind):
    reference = curves[f"{kind}-one"]
    assert reference[-1] < reference[0] - 0.3
    assert gap(curves[f"{kind}-cp2-wrong-order"], reference) > 10 * TOLERANCE[kind]


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_resume_is_bit_exact(curves, kind):
    assert curves[f"{kind}-one-resumed"] == curves[f"{kind}-one"][HALF:]


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_checkpoint_loads_at_another_layout(curves, kind, layout):
    assert gap(curves[f"{kind}-{layout}-resumed"], curves[f"{kind}-one"][HALF:]) <= TOLERANCE[kind]
