import json

import numpy
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_prism.data.readers import corpus_sources, read_texts
from megatron_prism.data.tokenization import tokenize_files, write_tokens
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_artifact):
    return Tokenizer.load(tokenizer_artifact.path)


def test_megatron_reads_exactly_the_documents(tokens, corpus, tokenizer):
    counts = json.loads(tokens.file("sources.json").read_text())
    assert counts == tokens.metrics["tokens"]
    for split in ("train", "valid"):
        sources = corpus_sources(corpus.path, split)
        assert counts[split].keys() == sources.keys()
        for source, file in sources.items():
            dataset = IndexedDataset(str(tokens.path / split / source))
            texts = list(read_texts(file))
            assert len(dataset) == len(texts) == len(dataset.document_indices) - 1
            assert int(dataset.sequence_lengths.sum()) == counts[split][source]
            for index in {0, len(texts) // 2, len(texts) - 1}:
                ids = dataset[index].tolist()
                assert ids == [*tokenizer.encode(texts[index]), tokenizer.eos_id]
                assert tokenizer.decode(ids[:-1]) == texts[index]


def test_more_than_one_batch_in_order(tokenizer, tmp_path):
    texts = [f"document {number}" for number in range(700)]
    count = write_tokens(iter(texts), tokenizer, tmp_path / "x")
    dataset = IndexedDataset(str(tmp_path / "x"))
    assert [tokenizer.decode(dataset[i].tolist()[:-1]) for i in range(len(dataset))] == texts
    assert (count.documents, count.tokens) == (700, int(dataset.sequence_lengths.sum()))


def test_ids_get_the_width_they_need(tokenizer, tmp_path):
    class Wide:
        vocab_size, eos_id = 150_000, 149_999

        def encode_documents(self, texts):
            return [[149_998, 70_000, 149_999] for _ in texts]

        def special_names(self, text):
            return []

    write_tokens(["x"], tokenizer, tmp_path / "narrow")
    write_tokens(["x"], Wide(), tmp_path / "wide")
    narrow, wide = IndexedDataset(str(tmp_path / "narrow")), IndexedDataset(str(tmp_path / "wide"))
    assert (narrow.index.dtype, wide.index.dtype) == (numpy.uint16, numpy.int32)
    assert wide[0].tolist() == [149_998, 70_000, 149_999]


def test_files_of_the_user(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("first")
    (tmp_path / "b.jsonl").write_text('{"body": "second"}\n{"body": "third"}\n')
    prefix = tmp_path / "out" / "mine"
    count = tokenize_files([tmp_path / "in", tmp_path / "b.jsonl"], tokenizer, prefix, text_key="body")
    dataset = IndexedDataset(str(prefix))
    assert [tokenizer.decode(dataset[i].tolist()[:-1]) for i in range(3)] == ["first", "second", "third"]
    assert count == int(dataset.sequence_lengths.sum())
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["mine.bin", "mine.idx"]


def test_nothing_is_left_behind_by_an_error(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"no": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: no key 'text'"):
        tokenize_files([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out" / "x")
    with pytest.raises(DataError, match="no documents to tokenize"):
        write_tokens([], tokenizer, tmp_path / "out" / "x")
    assert list((tmp_path / "out").iterdir()) == []
