"""The optimizer's state of a tied model with two gradient buckets survives a checkpoint."""

from __future__ import annotations

import pytest
import tied_resume
from parallel_runs import results_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return results_of(tied_resume.main, tmp_path_factory.mktemp("tied"), (2,))


def test_a_resumed_pipeline_with_a_tied_embedding_goes_on_with_the_same_losses(runs):
    assert runs["repaired"]["resumed"] == runs["repaired"]["unbroken"]


def test_without_the_repair_the_state_of_the_second_bucket_is_shifted(runs):
    found = runs["as upstream"]
    assert abs(found["resumed"][0] / found["unbroken"][0] - 1) > 1e-2
