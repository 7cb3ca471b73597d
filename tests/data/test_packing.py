"""The `packed` stage: selection, chunks, written sequences, counts, and refused configs."""

import dataclasses
import json
import shutil
from collections import Counter
from itertools import pairwise

import numpy
import pytest
from data_artifacts import make_artifact

from megatron_prism.data.long_documents import cut, select
from megatron_prism.data.packed_dataset import PACKING
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.token_files import TokenFile
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.pipeline.config import from_mapping

EOS = 0


def write_documents(prefix, lengths, first=1):
    """Write documents in which all tokens differ, each ended by EOS."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.int32)
    for length in lengths:
        document = numpy.append(numpy.arange(first, first + length - 1), EOS)
        builder.add_document(document, [length])
        first += length - 1
    builder.finalize(f"{prefix}.idx")


@pytest.fixture
def corpus(tmp_path):
    """A tokens artifact of two sources with random lengths."""
    random = numpy.random.default_rng(5)
    for split, documents in (("train", 300), ("valid", 40)):
        write_documents(tmp_path / "tokens" / split / "code", random.integers(2, 90, documents))
        write_documents(tmp_path / "tokens" / split / "web", random.integers(2, 30, documents))
    return Artifact(tmp_path / "tokens", Receipt("tokens", "0", "tokens", {}, {}))


def documents_of(prefix):
    file = TokenFile.open(prefix)
    return [file.document(number).tolist() for number in range(len(file.lengths))]


def chunks_of(prefix):
    """The chunks of each packed sequence, read with Megatron's reader."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    packed = IndexedDataset(str(prefix))
    ends = packed.document_indices.tolist()
    return [[packed[number].tolist() for number in range(first, last)] for first, last in pairwise(ends)]


def expected_chunks(documents, longest, overlap):
    """The same chunks, made by a loop over single documents."""
    made = []
    for document in documents:
        start = 0
        while True:
            chunk = document[start : start + longest]
            if start == 0 or len(chunk) > 1:
                made.append(tuple(chunk))
            if start + longest >= len(document):
                break
            start += longest - overlap
    return made


@pytest.mark.parametrize("overlap", [0, 1, 7, 31])
def test_the_output_has_exactly_the_kept_tokens(corpus, tmp_path, overlap):
    stage = PackDocuments(sequence_length=32, min_tokens=10, overlap=overlap)
    packed = make_artifact(stage, tmp_path / "packed", tokens=corpus)
    for split in ("train", "valid"):
        for source in ("code", "web"):
            kept = [d for d in documents_of(corpus.path / split / source) if len(d) >= 10]
            sequences = chunks_of(packed.path / split / source)
            found = Counter(tuple(chunk) for sequence in sequences for chunk in sequence)
            assert found == Counter(expected_chunks(kept, 33, overlap))
            assert max(sum(map(len, sequence)) for sequence in sequences) <= 33
            assert all(sorted(map(len, s), reverse=True) == list(map(len, s)) for s in sequences)
            tokens = Counter(token for chunk in found.elements() for token in chunk if token != EOS)
            if overlap == 0:
                assert set(tokens.values()) == {1}
                assert len(tokens) == sum(len(d) - 1 for d in kept)
            elif source == "code":
                assert max(tokens.values()) > 1


def test_the_ledger_adds_up(corpus, tmp_path):
    stage = PackDocuments(sequence_length=32, min_tokens=5, source_min_tokens={"code": 20}, overlap=4)
    packed = make_artifact(stage, tmp_path / "packed", tokens=corpus)
    assert json.loads((packed.path / PACKING).read_text())["ledger"] == packed.metrics["ledger"]
    for split in ("train", "valid"):
        held = places = 0
        for source, threshold in (("code", 20), ("web", 5)):
            row = packed.metrics["ledger"][split][source]
            documents = documents_of(corpus.path / split / source)
            lengths = numpy.array([len(document) for document in documents])
            sequences = chunks_of(packed.path / split / source)
            assert row["documents"] == len(documents) == row["kept"] + row["dropped_short"]
            assert row["dropped_short"] == (lengths < threshold).sum() > 0
            assert row["split"] == (lengths > 33).sum()
            assert row["min_tokens"] == threshold
            assert (row["chunks"], row["sequences"]) == (sum(map(len, sequences)), len(sequences))
            written = sum(len(chunk) for sequence in sequences for chunk in sequence)
            assert row["tokens"] == written == packed.metrics["tokens"][split][source]
            assert written == lengths.sum() - row["tokens_dropped"] + row["tokens_repeated"]
            assert row["padding_share"] == pytest.approx(1 - written / (33 * len(sequences)))
            assert row["lengths"]["0%"] == lengths.min()
            assert row["lengths"]["50%"] == numpy.sort(lengths)[len(lengths) // 2 - 1]
            assert row["lengths_kept"]["0%"] == lengths[lengths >= threshold].min()
            held, places = held + written, places + 33 * len(sequences)
        assert packed.metrics["padding_share"][split] == pytest.approx(1 - held / places)
    assert packed.metrics["train_tokens"] == sum(packed.metrics["tokens"]["train"].values())


def test_long_documents_are_dropped_if_they_are_not_split(corpus, tmp_path):
    stage = PackDocuments(sequence_length=32, split_long=False, sources=["code"])
    packed = make_artifact(stage, tmp_path / "packed", tokens=corpus)
    row = packed.metrics["ledger"]["train"]["code"]
    documents = documents_of(corpus.path / "train" / "code")
    kept = [tuple(document) for document in documents if len(document) <= 33]
    found = [tuple(chunk) for sequence in chunks_of(packed.path / "train" / "code") for chunk in sequence]
    assert Counter(found) == Counter(kept)
    assert row["dropped_long"] == 300 - len(kept) > 0
    assert row["split"] == row["dropped_short"] == row["tokens_repeated"] == 0
    assert row["tokens_dropped"] == sum(len(document) for document in documents if len(document) > 33)
    assert not (packed.path / "train" / "web.bin").exists()


def test_repeated_packing_is_identical_and_needs_no_input_afterwards(corpus, tmp_path):
    stage = PackDocuments(sequence_length=32, overlap=3)
    first = make_artifact(stage, tmp_path / "first", tokens=corpus)
    second = make_artifact(stage, tmp_path / "second", tokens=corpus)
    assert first.receipt.outputs == second.receipt.outputs
    shutil.rmtree(corpus.path)
    first.verify()
    assert chunks_of(first.path / "train" / "code")


def test_selection_at_the_edges():
    lengths = numpy.array([4, 5, 10, 11, 0])
    assert select(lengths, 5, 10, split_long=True).kept.tolist() == [1, 2, 3]
    only = select(lengths, 5, 10, split_long=False)
    assert only.kept.tolist() == [1, 2]
    assert (only.dropped_short, only.dropped_long, only.dropped_tokens) == (2, 1, 15)


@pytest.mark.parametrize(
    ("length", "overlap", "pieces"),
    [
        (10, 0, [(0, 10)]),
        (11, 0, [(0, 10)]),  # the eleventh token is only the end token
        (12, 0, [(0, 10), (10, 2)]),
        (20, 0, [(0, 10), (10, 10)]),
        (11, 1, [(0, 10), (9, 2)]),
        (19, 1, [(0, 10), (9, 10)]),
        (20, 1, [(0, 10), (9, 10), (18, 2)]),
        (12, 9, [(0, 10), (1, 10), (2, 10)]),
    ],
)
def test_cuts_at_the_edges(length, overlap, pieces):
    chunks = cut(numpy.array([3]), numpy.array([length]), 10, overlap)
    assert list(zip(chunks.start.tolist(), chunks.length.tolist(), strict=True)) == pieces
    assert chunks.document.tolist() == [3] * len(pieces)
    assert chunks.dropped_tokens == (length == 11 and overlap == 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sequence_length": 0}, "sequence_length=0"),
        ({"overlap": 32}, "overlap=32: must be 0 or more and less than sequence_length=32"),
        ({"overlap": -1}, "overlap=-1"),
        ({"min_tokens": 1}, "min_tokens=1: must be 2 or more"),
        ({"source_min_tokens": {"web": 0}}, "source_min_tokens.web=0"),
        ({"min_tokens": 33, "split_long": False}, "min_tokens=33 is more than sequence_length=32, and split_long"),
        ({"source_min_tokens": {"web": 40}, "split_long": False}, "source_min_tokens.web=40 is more than"),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused_when_made(change, named):
    with pytest.raises(ConfigError, match=named):
        PackDocuments(**({"sequence_length": 32} | change))
    assert PackDocuments(sequence_length=32, min_tokens=33).split_long


def test_a_source_without_remaining_documents_is_an_error(corpus, tmp_path):
    stage = PackDocuments(sequence_length=128, source_min_tokens={"web": 60})
    with pytest.raises(DataError) as caught:
        stage.run({"tokens": corpus}, tmp_path / "out")
    longest = max(map(len, documents_of(corpus.path / "train" / "web")))
    for part in ("web", "(train)", "min_tokens=60", f"longest document has {longest}", "lower min_tokens"):
        assert part in str(caught.value)
    write_documents(corpus.path / "valid" / "code", [70, 80])
    with pytest.raises(DataError, match=r"'code' \(valid\) is left .* split_long=false .* 80 tokens"):
        PackDocuments(sequence_length=32, split_long=False).run({"tokens": corpus}, tmp_path / "other")


def test_unknown_sources_and_damaged_files(corpus, tmp_path):
    for field in ("sources", "source_min_tokens"):
        value = ["cod"] if field == "sources" else {"cod": 9}
        with pytest.raises(DataError, match="no source 'cod'; did you mean 'code'"):
            PackDocuments(sequence_length=32, **{field: value}).run({"tokens": corpus}, tmp_path / field)
    index = corpus.path / "train" / "code.idx"
    whole = index.read_bytes()
    backwards = whole[:-16] + whole[-8:] + whole[-16:-8]
    for damaged, named in ((whole[:-4], "not a complete index"), (backwards, "are not consecutive")):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"code\.idx: .*{named}.*tokenize the source again"):
            PackDocuments(sequence_length=32).run({"tokens": corpus}, tmp_path / named)


def test_the_config_survives_its_receipt():
    stage = PackDocuments(sequence_length=32, source_min_tokens={"web": 9}, sources=["web"])
    assert from_mapping(PackDocuments, dataclasses.asdict(stage)) == stage
    assert stage.fingerprint({}) != PackDocuments(sequence_length=32, sources=["web"]).fingerprint({})
