"""Negative controls: each fault that the product had on a GPU is brought back, and the imitation sees it."""

from __future__ import annotations

import pytest
import torch

from gpu_imitation.faults import CASES, outcomes
from gpu_imitation.processes import imitated

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU of its own")
TWO_DEVICES = "RuntimeError: Expected all tensors to be on the same device"
EXPECTED = {
    "resume with torch's Adam": ("same", "KeyError: 'step'"),
    "resume with Transformer Engine's Adam": ("same", "KeyError: 'step'"),
    "resume with Apex's Adam": ("same", "KeyError: 'step'"),
    "parameter count": ("18", "RuntimeError: No backend type associated with device type cpu"),
    "frozen weights": ("trained", TWO_DEVICES),
    "weights": ("trained", TWO_DEVICES),
    "buffers": ("trained", TWO_DEVICES),
    "random state": ("same", "different"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return imitated(outcomes, tmp_path_factory.mktemp("faults"))


def test_every_case_is_expected():
    assert EXPECTED.keys() == CASES.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_fault_is_seen(found, name):
    without, with_fault = found[name]
    assert without.startswith(EXPECTED[name][0]), without
    assert with_fault.startswith(EXPECTED[name][1]), with_fault
