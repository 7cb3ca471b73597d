import json
import os

import pytest
from data_artifacts import make_artifact

from megatron_prism.data.corpus import FileCorpus, split_of
from megatron_prism.data.readers import SPLITS, corpus_sources, read_texts
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.config import apply_overrides


@pytest.fixture
def files(tmp_path):
    texts = [f"document {number} says hello to the world" for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (tmp_path / "notes").mkdir()
    for number in range(60):
        (tmp_path / "notes" / f"{number}.txt").write_text(f"note number {number}\n")
    return tmp_path, texts


def test_a_users_files_become_a_corpus_that_trains(files, tmp_path_factory):
    folder, texts = files
    out = tmp_path_factory.mktemp("out")
    stage = FileCorpus(sources={"web": str(folder / "a.jsonl")}, text_key="body", valid_percent=10)
    corpus = make_artifact(stage, out / "corpus")
    found = {split: list(read_texts(corpus_sources(corpus.path, split)["web"])) for split in SPLITS}
    assert sorted(found["train"] + found["valid"]) == sorted(texts)
    assert 5 <= len(found["valid"]) <= 40
    assert all(split_of(text, 10) == split for split, kept in found.items() for text in kept)
    assert corpus.metrics["sources"]["valid"]["web"]["documents"] == len(found["valid"])
    tokenizer = make_artifact(TrainTokenizer(vocab_size=280), out / "tokenizer", corpus=corpus)
    tokens = make_artifact(TokenizeCorpus(), out / "tokens", corpus=corpus, tokenizer=tokenizer)
    assert tokens.metrics["tokens"]["train"]["web"] > len(found["train"])


def test_the_held_out_share_is_valid_percent():
    texts = [str(number) for number in range(20_000)]
    for percent in (0.5, 5, 50):
        share = sum(split_of(text, percent) == "valid" for text in texts) / len(texts)
        assert share == pytest.approx(percent / 100, rel=0.2)


def test_a_changed_file_changes_the_fingerprint(files):
    folder, _ = files
    stage = FileCorpus(sources={"notes": str(folder / "notes")})
    before = stage.fingerprint({})
    assert stage.fingerprint({}) == before
    os.utime(folder / "notes" / "3.txt", ns=(1, 1))
    touched = stage.fingerprint({})
    (folder / "notes" / "new.txt").write_text("one more")
    assert len({before, touched, stage.fingerprint({})}) == 3


def test_sources_can_be_given_on_the_command_line(files):
    folder, _ = files
    stage = apply_overrides(FileCorpus(), {"sources.notes": str(folder / "notes"), "valid_percent": 20})
    assert stage.sources == {"notes": str(folder / "notes")}


def test_mistakes_are_named(files, tmp_path):
    folder, _ = files
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        FileCorpus(sources={"web": str(folder / "absent.jsonl")}).fingerprint({})
    with pytest.raises(ConfigError, match="sources: empty"):
        FileCorpus().run({}, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"'../web' is used in file names"):
        FileCorpus(sources={"../web": "a"})
    with pytest.raises(ConfigError, match="valid_percent=0"):
        FileCorpus(valid_percent=0)
    with pytest.raises(DataError, match="no key 'text'; keys here: body"):
        FileCorpus(sources={"web": str(folder / "a.jsonl")}).run({}, tmp_path / "y")
    with pytest.raises(DataError, match=r"none of its 60 documents is in 'valid' with valid_percent=0.001"):
        FileCorpus(sources={"notes": str(folder / "notes")}, valid_percent=0.001).run({}, tmp_path / "z")
