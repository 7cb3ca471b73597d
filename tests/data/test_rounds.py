"""The order of a run's data does not depend on where the run ends."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.data.blend import IndexFolder, source_counts, training_dataset
from megatron_prism.data.mixture import Mixture
from megatron_prism.data.rounds import Rounds
from megatron_prism.data.tokenizer import Tokenizer

LENGTH = 64
SHARES = Mixture.load("shoebox-mcs").weights


@pytest.fixture
def rows(tokens, tokenizer_artifact, tmp_path):
    """`[samples, LENGTH]` of the first samples."""

    def read(samples: int, round_samples: int, weights=SHARES) -> torch.Tensor:
        dataset = training_dataset(
            tokens.path,
            "train",
            weights,
            sequence_length=LENGTH,
            num_samples=samples,
            round_samples=round_samples,
            seed=1,
            indices=IndexFolder(tmp_path / "cache"),
            tokenizer=Tokenizer.load(tokenizer_artifact.path),
        )
        return torch.stack([dataset[index]["tokens"] for index in range(samples)])

    return read


@pytest.mark.parametrize("weights", [SHARES, {"math": 1.0}], ids=["blend", "one source"])
def test_a_shorter_run_reads_the_beginning_of_a_longer_one(rows, weights):
    longest = rows(3000, 1000, weights)
    for samples in (10, 1000, 1700):
        assert torch.equal(rows(samples, 1000, weights), longest[:samples])


def test_megatrons_order_depends_on_the_number_of_samples(rows):
    """Without rounds of a fixed length, which is what makes them necessary."""
    assert not torch.equal(rows(1000, 1000), rows(3000, 3000)[:1000])


def test_rounds_differ_and_keep_the_shares(tokens, tokenizer_artifact, tmp_path, rows):
    data = rows(2000, 1000)
    assert not torch.equal(data[:1000], data[1000:])
    dataset = training_dataset(
        tokens.path, "train", SHARES, sequence_length=LENGTH, num_samples=2000, round_samples=1000, seed=1,
        indices=IndexFolder(tmp_path / "cache"), tokenizer=Tokenizer.load(tokenizer_artifact.path),
    )  # fmt: skip
    assert isinstance(dataset, Rounds)
    assert len(dataset) == 2000
    once, twice = (source_counts(dataset, list(SHARES), count) for count in (1000, 2000))
    assert twice == {name: 2 * count for name, count in once.items()}
