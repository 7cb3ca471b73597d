"""Where the documents of a training row are: from the index of the token files, in joined and in packed rows."""

from __future__ import annotations

import pytest
import torch
from data_artifacts import make_artifact

from megatron_prism.data.blend import IndexFolder, training_dataset
from megatron_prism.data.document_bounds import mark_documents
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.tokenizer import Tokenizer

LENGTH = 96
WEIGHTS = {"math": 0.5, "web": 0.5}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_artifact):
    return Tokenizer.load(tokenizer_artifact.path)


def samples(folder, tokenizer, cache, **settings):
    dataset = training_dataset(
        folder,
        "train",
        WEIGHTS,
        sequence_length=LENGTH,
        num_samples=60,
        round_samples=60,
        seed=3,
        indices=IndexFolder(cache),
        tokenizer=tokenizer,
        **settings,
    )
    return [dataset[index] for index in range(60)]


def test_the_numbers_change_after_each_end_token(tokens, tokenizer, tmp_path):
    # In this corpus every document has one end token, at its end: an independent way to find the documents.
    marked = samples(tokens.path, tokenizer, tmp_path / "a", documents=True)
    plain = samples(tokens.path, tokenizer, tmp_path / "b")
    assert "documents" not in plain[0]
    ends = 0
    for one, other in zip(marked, plain, strict=True):
        assert torch.equal(one["tokens"], other["tokens"])
        end = one["tokens"] == tokenizer.eos_id
        assert one["documents"].tolist() == [0, *end[:-1].cumsum(0).tolist()]
        # An end token predicts nothing, because its label belongs to the next document.
        assert torch.equal(one["loss_mask"], other["loss_mask"] * ~end)
        ends += int(end.sum())
    assert ends > 30


def test_packed_rows_too_and_their_padding_is_a_document(tokens, tokenizer, tmp_path):
    stage = PackDocuments(sequence_length=LENGTH, min_tokens=10, sources=list(WEIGHTS))
    packed = make_artifact(stage, tmp_path / "packed", tokens=tokens)
    marked = samples(packed.path, tokenizer, tmp_path / "a", documents=True)
    plain = samples(packed.path, tokenizer, tmp_path / "b")
    padded = 0
    for one, other in zip(marked, plain, strict=True):
        assert torch.equal(one["tokens"], other["tokens"])
        used = int(other["loss_mask"].sum()) + 1
        end = (one["tokens"] == tokenizer.eos_id) & (torch.arange(LENGTH) < used)
        assert one["documents"].tolist() == [0, *end[:-1].cumsum(0).tolist()]
        assert torch.equal(one["loss_mask"], other["loss_mask"] * ~end)
        padded += LENGTH - used
    assert padded > 0


def test_padding_is_a_document_of_its_own():
    sample = {"tokens": torch.arange(6), "loss_mask": torch.tensor([1.0, 1, 1, 0, 0, 0])}
    marked = mark_documents(sample, [2, 2])
    assert marked["documents"].tolist() == [0, 0, 1, 1, 2, 2]
    assert marked["loss_mask"].tolist() == [1, 0, 1, 0, 0, 0]


def test_a_last_document_of_one_label():
    # The row's last token is only a label, and the first of a document.
    marked = mark_documents({"tokens": torch.arange(4), "loss_mask": torch.ones(4)}, [4, 1])
    assert marked["documents"].tolist() == [0, 0, 0, 0]
    assert marked["loss_mask"].tolist() == [1, 1, 1, 0]
