"""Samples of packed sequences: their contents, order and sources."""

import json
import shutil
from types import SimpleNamespace

import numpy
import pytest
import torch
from data_artifacts import make_artifact

from megatron_prism.data.blend import IndexFolder, source_counts, training_dataset
from megatron_prism.data.packed_dataset import PACKING, packed_dataset
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.token_files import TokenFile
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError

LENGTH = 96
WEIGHTS = {"math": 0.5, "web": 0.3, "chat": 0.2}
PAD = 9


@pytest.fixture(scope="module")
def tokenizer(tokenizer_artifact):
    return Tokenizer.load(tokenizer_artifact.path)


@pytest.fixture(scope="module")
def packed(tokens, tmp_path_factory):
    stage = PackDocuments(sequence_length=LENGTH, min_tokens=30, sources=list(WEIGHTS))
    return make_artifact(stage, tmp_path_factory.mktemp("packed") / "packed", tokens=tokens)


@pytest.fixture
def blend(packed):
    def build(
        weights=WEIGHTS, samples=200, seed=1, folder=packed.path, length=LENGTH, split="train", pad=PAD
    ):
        return packed_dataset(
            folder,
            split,
            weights,
            sequence_length=length,
            num_samples=samples,
            seed=seed,
            tokenizer=SimpleNamespace(pad_id=pad),
        )

    return build


def held(sample):
    """The packed sequence that a sample was made from: the tokens with loss, and the one before the first label."""
    used = int(sample["loss_mask"].sum())
    return [int(sample["tokens"][0]), *sample["labels"][:used].tolist()]


def rows(dataset, count):
    return torch.stack([dataset[index]["tokens"] for index in range(count)])


def test_a_sample_is_a_packed_sequence(blend, packed):
    file = TokenFile.open(packed.path / "train" / "chat")
    dataset = blend({"chat": 1.0}, samples=len(file.lengths))
    found, padded = [], 0
    for index in range(len(dataset)):
        sample = dataset[index]
        assert {key: (value.dtype, value.shape) for key, value in sample.items() if key != "dataset_id"} == {
            key: (kind, (LENGTH,))
            for key, kind in (
                ("tokens", torch.int64),
                ("labels", torch.int64),
                ("loss_mask", torch.float32),
                ("position_ids", torch.int64),
            )
        }
        sequence = held(sample)
        found.append(sequence)
        assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
        assert torch.equal(sample["position_ids"], torch.arange(LENGTH))
        assert sample["tokens"][: len(sequence)].tolist() == sequence[:LENGTH]
        assert set(sample["tokens"][len(sequence) :].tolist()) <= {PAD}
        assert set(sample["labels"][len(sequence) - 1 :].tolist()) <= {PAD}
        # Ones, then zeros.
        assert torch.equal(sample["loss_mask"], sample["loss_mask"].sort(descending=True).values)
        padded += int((sample["loss_mask"] == 0).sum())
    assert padded > 0
    assert sorted(found) == sorted(file.document(number).tolist() for number in range(len(file.lengths)))


def test_decoded_samples_are_whole_documents(blend, tokens, tokenizer, tmp_path):
    stage = PackDocuments(sequence_length=LENGTH, min_tokens=40, split_long=False, sources=["math", "chat"])
    packed = make_artifact(stage, tmp_path / "packed", tokens=tokens)
    sequences = packed.metrics["ledger"]["train"]["math"]["sequences"]
    dataset = blend({"math": 1.0}, samples=sequences, folder=packed.path)
    end = tokenizer.decode([tokenizer.eos_id])
    found = [
        text
        for index in range(sequences)
        for text in tokenizer.decode(held(dataset[index])).removesuffix(end).split(end)
    ]
    file = TokenFile.open(tokens.path / "train" / "math")
    expected = [
        tokenizer.decode(file.document(number)[:-1])
        for number in numpy.flatnonzero((file.lengths >= 40) & (file.lengths <= LENGTH + 1))
    ]
    assert sorted(found) == sorted(expected)
    assert len(expected) > 1.2 * sequences


def test_an_end_token_that_also_pads_is_masked_by_position(blend, tokenizer):
    # If padding has no separate token, the end tokens inside a sequence still have loss.
    dataset = blend({"chat": 1.0}, samples=100, pad=tokenizer.eos_id)
    learnt = sum(
        int(((s["labels"] == tokenizer.eos_id) * s["loss_mask"]).sum()) for s in map(dataset.__getitem__, range(100))
    )  # fmt: skip
    assert learnt > 50


def test_shares_over_any_prefix(blend):
    dataset = blend(samples=1000)
    assert len(dataset) == 1000
    for first in (10, 77, 1000):
        counts = source_counts(dataset, list(WEIGHTS), first)
        assert sum(counts.values()) == first
        for source, share in WEIGHTS.items():
            assert abs(counts[source] - share * first) <= 1
    # Weights need not sum to one; other weights fail the same bound.
    scaled = blend({name: 7 * weight for name, weight in WEIGHTS.items()}, samples=1000)
    assert torch.equal(rows(scaled, 50), rows(dataset, 50))
    equal = source_counts(blend(dict.fromkeys(WEIGHTS, 1.0), samples=1000), list(WEIGHTS), 1000)
    assert abs(equal["math"] - 500) > 100


def test_each_epoch_reads_all_sequences_in_a_new_order(blend, packed):
    count = len(TokenFile.open(packed.path / "valid" / "chat").lengths)
    dataset = blend({"chat": 1.0}, samples=3 * count, split="valid")
    first, second, third = rows(dataset, 3 * count).split(count)
    keys = [sorted(map(tuple, epoch.tolist())) for epoch in (first, second, third)]
    assert keys[0] == keys[1] == keys[2]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_the_arguments_decide_the_order(blend):
    dataset = blend()
    assert torch.equal(rows(dataset, 200), rows(blend(), 200))
    assert not torch.equal(rows(dataset, 200), rows(blend(seed=2), 200))
    # A run that is longer or resumed reads the same samples at the same positions.
    longer = blend(samples=777)
    assert torch.equal(rows(dataset, 200), rows(longer, 200))
    assert torch.equal(dataset[137]["tokens"], longer[137]["tokens"])
    with pytest.raises(IndexError):
        dataset[200]


def test_training_dataset_recognises_a_packed_folder(packed, tokens, tokenizer, blend, tmp_path):
    arguments = {"sequence_length": LENGTH, "num_samples": 20, "seed": 1, "tokenizer": tokenizer}
    arguments |= {
        "round_samples": 20,
        "split": "train",
        "weights": {"math": 1.0},
        "indices": IndexFolder(tmp_path / "cache"),
    }
    expected = blend({"math": 1.0}, samples=20, pad=tokenizer.pad_id)
    assert torch.equal(rows(training_dataset(packed.path, **arguments), 20), rows(expected, 20))
    assert not (tmp_path / "cache").exists()
    joined = training_dataset(tokens.path, **arguments)
    assert all(joined[index]["loss_mask"].all() for index in range(20))
    assert (tmp_path / "cache").exists()


def test_refusals(blend, packed, tmp_path):
    for wrong in ({"samples": 0}, {"length": 0}, {"seed": -1}, {"weights": {}}, {"weights": {"math": 0.0}}):
        with pytest.raises(ConfigError):
            blend(**wrong)
    with pytest.raises(
        ConfigError, match=r"packed with sequence_length=96, but sequence_length=128 .*batch\."
    ):
        blend(length=128)
    with pytest.raises(DataError, match="no source 'maths'; did you mean 'math'"):
        blend({"maths": 1.0})
    with pytest.raises(DataError, match="no source 'code'"):
        blend({"code": 1.0})
    broken = shutil.copytree(packed.path, tmp_path / "broken")
    data = broken / "train" / "math.bin"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(
        DataError, match=r"math\.bin: \d+ bytes, but its index says \d+; pack the documents again"
    ):
        blend(folder=broken)
    settings = json.loads((broken / PACKING).read_text())
    for text in ("", "[]", "{}", json.dumps(settings | {"sequence_length": "long"})):
        (broken / PACKING).write_text(text)
        with pytest.raises(DataError, match=rf"{PACKING}: .*pack the documents again"):
            blend(folder=broken)
    # Sequences that are longer than the file says.
    (broken / PACKING).write_text(json.dumps(settings | {"sequence_length": 48}))
    with pytest.raises(DataError, match="with sequence_length=48 they must have 2 to 49"):
        blend({"web": 1.0}, folder=broken, length=48)


def test_two_byte_ids_are_read_unchanged(tmp_path, blend):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    (tmp_path / "train").mkdir()
    builder = IndexedDatasetBuilder(str(tmp_path / "train" / "a.bin"), dtype=numpy.uint16)
    builder.add_document(numpy.array([65_000, 40_000, 7]), [3])
    builder.finalize(str(tmp_path / "train" / "a.idx"))
    (tmp_path / PACKING).write_text(json.dumps({"sequence_length": 4}))
    sample = blend({"a": 1.0}, samples=1, folder=tmp_path, length=4)[0]
    assert sample["tokens"].tolist() == [65_000, 40_000, 7, PAD]
    assert sample["labels"].tolist() == [40_000, 7, PAD, PAD]
    assert sample["loss_mask"].tolist() == [1, 1, 0, 0]
