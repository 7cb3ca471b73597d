"""Two ranks with an imitated GPU each find what one process on the CPU finds, in every kind of layout."""

from __future__ import annotations

import pytest
import torch

from gpu_imitation.layouts import MODELS, TWO, alone, together
from gpu_imitation.processes import imitated, on_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU of its own")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    expected = on_cpu(alone, folder)
    return imitated(together, folder, world=2), expected


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", TWO)
def test_two_gpus_train_and_resume_like_one_process(runs, kind, name):
    found, expected = runs[0][kind][name], runs[1][kind]
    assert found["parameters"] == expected["parameters"]
    for what in ("losses", "resumed", "validation"):
        assert found[what] == pytest.approx(expected[what], rel=1e-5)
