"""The rules for JSON and text from other programs, and that every reader follows them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import zstandard

from megatron_prism.data.packed_dataset import packed_sequence_length
from megatron_prism.data.readers import Blank, read_texts
from megatron_prism.data.ruler.questions import read_hotpot
from megatron_prism.data.ruler.samples import read_manifest
from megatron_prism.data.ruler.samples import read_samples as ruler_samples
from megatron_prism.data.text_record import read_record
from megatron_prism.errors import ArtifactError, ConfigError, DataError, PrismError
from megatron_prism.evaluation.ruler.recovery import read_recalls
from megatron_prism.evaluation.scores import read_problems, read_scores
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.pipeline.config import parse_override
from megatron_prism.pipeline.json_text import is_blank, read_json, read_records, read_text
from megatron_prism.pipeline.yaml_file import load_yaml
from megatron_prism.report.records import read_history, read_run
from megatron_prism.rl.record import read_metrics
from megatron_prism.verification.problems import load_suite

MARK = b"\xef\xbb\xbf"
PROBLEM = {"id": "a", "domain": "math", "prompt": "q?", "kind": "math", "answer": "1", "tests": []}
# Values that break a rule, and the error message.
BROKEN = {
    "half a pair": (b'"\\ud83d end"', "'text' holds half a surrogate pair"),
    "the other half": (b'"\\uDC00"', "'text' holds half a surrogate pair"),
    "half a pair inside": (b'{"a": ["\\ud83d"]}', "'text' holds half a surrogate pair"),
    "3,000 levels": (b"[" * 3000 + b"]" * 3000, "JSON nested more than 100 levels"),
    "101 levels": (b"[" * 101 + b"]" * 101, "JSON nested more than 100 levels"),
    "levels without end": (b"[" * 100_000, "JSON nested more than 100 levels"),
    "a long number": (b"9" * 5000, "not JSON (Exceeds the limit"),
    "a key twice": (b'{"a": 1, "a": 2}', "not JSON (key 'a' appears twice"),
    "a byte that is not text": (b'"\xff"', "not UTF-8"),
    "nothing": (b"", "not JSON"),
}


def lines_of(value: bytes) -> bytes:
    return b'{"text": "good"}\n\n{"text": ' + value + b"}\n"


def suite(tmp_path, data: bytes):
    (tmp_path / "suite.jsonl").write_bytes(data)
    return lambda: load_suite(tmp_path, "suite")


def corpus(tmp_path, data: bytes):
    (tmp_path / "suite.jsonl").write_bytes(data)
    return lambda: list(read_texts(tmp_path / "suite.jsonl"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_by_every_reader(name, tmp_path):
    value, said = BROKEN[name]
    with pytest.raises(DataError) as caught:
        corpus(tmp_path, lines_of(value))()
    message = str(caught.value)
    assert f"suite.jsonl:3: {said}" in message
    assert len(message) < 400
    assert "set_int_max" not in message
    record = json.dumps(PROBLEM).encode()
    with pytest.raises(DataError) as caught:
        suite(tmp_path, record + b"\n" + record.replace(b'"q?"', value or b",").replace(b'"a"', b'"b"', 1))()
    assert f"suite.jsonl:2: {said.replace('text', 'prompt')}" in str(caught.value)


def test_a_hundred_levels_and_a_pair_are_fine(tmp_path):
    value = b"[" * 99 + b"]" * 99
    data = b'{"text": "\\ud83d\\ude00", "n": NaN, "m": ' + value + b"}"
    assert corpus(tmp_path, data)() == ["\U0001f600"]


@pytest.mark.parametrize("reader", [corpus, suite])
def test_a_mark_at_the_start_is_dropped_and_a_later_one_named(reader, tmp_path):
    record = json.dumps(PROBLEM | {"prompt": "q"}).encode()
    if reader is corpus:
        record = b'{"text": "q"}'
    assert len(reader(tmp_path, MARK + record)()) == 1
    assert len(reader(tmp_path, record + b"\r\n\n")()) == 1
    with pytest.raises(DataError, match=r"suite\.jsonl:2: a byte order mark in the middle"):
        reader(tmp_path, record + b"\n" + MARK + record.replace(b'"a"', b'"b"', 1))()


def test_lines_end_at_line_feeds_only(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"
    data = json.dumps({"text": text}, ensure_ascii=False).replace("\\u000b", "\x0b")
    (tmp_path / "a.jsonl").write_text(data, newline="")
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
        list(read_records(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False), newline="")
    assert [record["text"] for record, _ in read_records(tmp_path / "a.jsonl")] == [text]


def test_whole_files_follow_the_rules(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(MARK + b'{"a": 1, "a": 2}')
    assert read_json(file) == {"a": 2}
    for data, said in (
        (b"[" * 3000, "nested more than"),
        (b'["\\ud800"]', "half a surrogate"),
        (b"\xff", "UTF-8"),
    ):
        file.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"a\.json: .*{said}"):
            read_json(file, ConfigError)
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(DataError, match="not readable"):
        read_text(tmp_path)
    file.write_bytes(MARK + b"a\r\n")
    assert read_text(file) == "a\r\n"
    file.write_text(json.dumps([{"question": "q?", "answer": "a", "context": [["t", ["\ud800"]]]}]))
    with pytest.raises(DataError, match="half a surrogate pair"):
        read_hotpot(file)


def test_what_a_model_said_keeps_its_half_pairs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prediction": "\\ud83d"}')
    assert [record for record, _ in read_records(tmp_path / "a.jsonl", keep_half_pairs=True)] == [
        {"prediction": "\ud83d"}
    ]


@pytest.mark.parametrize(
    "blank", ["", "  ", "\n\t ", "\u200b", "\u00a0", "\ufeff", "\0", "\u2028\u3000\u00ad"]
)
def test_blank_texts_are_no_documents_and_are_counted(blank, tmp_path):
    assert is_blank(blank)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in (blank, "a", blank))
    )
    counted = Blank()
    assert list(read_texts(tmp_path / "a.jsonl", blank=counted)) == ["a"]
    assert counted.documents == 2
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": blank}) + "\n") * 100)
    with pytest.raises(DataError, match=r"empty corpus, it has no document with text \(100 blank\)"):
        list(read_texts(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="'prompt' is blank"):
        suite(tmp_path, json.dumps(PROBLEM | {"prompt": blank}).encode())()


def test_visible_texts_are_not_blank():
    assert not any(map(is_blank, ("a", " . ", "\u200b\U0001f600", "\ue000")))


def test_plain_text_loses_its_mark_and_yaml_too(tmp_path):
    (tmp_path / "a.txt").write_bytes(MARK + "a \ufeff b".encode())
    assert list(read_texts(tmp_path / "a.txt")) == ["a \ufeff b"]
    (tmp_path / "a.yaml").write_bytes(MARK + b"name: x")
    assert load_yaml(tmp_path / "a.yaml") == {"name": "x"}
    (tmp_path / "a.yaml").write_text("name: " + "[" * 3000)
    with pytest.raises(ConfigError, match=r"a\.yaml: the YAML is nested too deeply"):
        load_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_override("a=" + "[" * 3000)


def _history(folder: Path) -> object:
    return read_history(Artifact(folder, Receipt("train", "", "", {}, {})))


ARTIFACT_FILES = {
    "receipt.json": Artifact.open,
    "graph.json": read_run,
    "text.json": read_record,
    "ruler.json": read_manifest,
    "packing.json": packed_sequence_length,
    "scores.json": read_scores,
    "problems.json": read_problems,
    "recalls/samples.jsonl.zst": lambda folder: read_recalls(folder / "recalls"),
    "64/task.jsonl.zst": lambda folder: list(ruler_samples(folder, "task", 64)),
    "rl/metrics.jsonl": lambda folder: read_metrics(folder / "rl"),
    "metrics.jsonl": _history,
}
DAMAGED = {
    "nested 100,000 deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "latin 1": b'{"a": "caf\xe9"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "no object": b"[1]",
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "cut off": b'{"a": 1',
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ARTIFACT_FILES)
def test_a_damaged_file_of_an_artifact_is_named_in_one_line(name, damage, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    data = DAMAGED[damage]
    file.write_bytes(zstandard.compress(data) if name.endswith(".zst") else data)
    with pytest.raises(PrismError) as problem:
        ARTIFACT_FILES[name](tmp_path)
    said = str(problem.value)
    assert said.startswith(str(file))
    assert "\n" not in said
    assert len(said) < len(str(file)) + 250


@pytest.mark.parametrize("name", [name for name in ARTIFACT_FILES if name.endswith(".zst")])
def test_a_compressed_file_that_was_cut_off_is_no_shorter_file(name, tmp_path):
    """The file is cut after complete lines, so its decompressed part looks like a shorter file."""
    sample = {"task": "task", "index": 0, "seed": 1, "tokens": 3, "max_new_tokens": 4, "prompt": "p"}
    sample |= {
        "length": 64,
        "answers": ["a"],
        "metric": "recall",
        "depths": [0.5],
        "source": "s",
        "recall": 1,
    }
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    compressor = zstandard.ZstdCompressor().compressobj()
    whole = compressor.compress(json.dumps(sample).encode() + b"\n")
    whole += compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    file.write_bytes(whole)
    with pytest.raises(PrismError, match="damaged zstd data"):
        ARTIFACT_FILES[name](tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("answers", "abc", "'answers' must be a list of text"),
        ("answers", [1], "'answers' must be a list of text"),
        ("prompt", 5, "'prompt' must be text"),
        ("index", "0", "'index' must be a whole number"),
        ("index", True, "'index' must be a whole number"),
        ("depths", [None], "'depths' must be a list of a number"),
        ("metric", "recal", "did you mean 'recall'"),
        ("length", 128, "belongs to task 'task' at length 128"),
    ],
)
def test_a_ruler_sample_with_a_wrong_value(key, value, said, tmp_path):
    sample = {"task": "task", "index": 0, "seed": 1, "tokens": 3, "max_new_tokens": 4, "prompt": "p"}
    sample |= {"length": 64, "answers": ["a"], "metric": "recall", "depths": [0.5], "source": "s"}
    (tmp_path / "64").mkdir()
    file = tmp_path / "64" / "task.jsonl.zst"
    file.write_bytes(zstandard.compress(json.dumps(sample | {key: value}).encode()))
    with pytest.raises(DataError, match=f"task.jsonl.zst:1: .*{said}"):
        list(ruler_samples(tmp_path, "task", 64))


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", None), ("config", []), ("metrics", 5), ("outputs", [{"path": 5, "size": 1, "sha256": ""}])],
)
def test_a_receipt_with_a_wrong_value(key, value, tmp_path):
    receipt = {"kind": "x", "fingerprint": "f", "stage": "s", "config": {}, "inputs": {}, "outputs": []}
    (tmp_path / "receipt.json").write_text(json.dumps(receipt | {key: value}))
    with pytest.raises(ArtifactError, match=r"receipt.json: not a valid receipt \(.*must be"):
        Artifact.open(tmp_path)


def test_a_receipt_may_name_a_folder_whose_name_is_no_utf8(tmp_path):
    receipt = {"kind": "x", "fingerprint": "f", "stage": "s", "inputs": {}, "outputs": []}
    config = {"folder": os.fsdecode(b"caf\xe9")}
    (tmp_path / "receipt.json").write_text(json.dumps({**receipt, "config": config}))
    assert Artifact.open(tmp_path).receipt.config == config
