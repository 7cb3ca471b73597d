"""The rules by which every reader takes JSON and text that others wrote, and that every reader follows them."""

from __future__ import annotations

import json

import pytest

from megatron_prism.data.readers import Blank, read_texts
from megatron_prism.data.ruler.questions import read_hotpot
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.config import load_yaml, parse_override
from megatron_prism.pipeline.json_text import is_blank, read_json, read_records, read_text
from megatron_prism.verification.problems import load_suite

MARK = b"\xef\xbb\xbf"
PROBLEM = {"id": "a", "domain": "math", "prompt": "q?", "kind": "math", "answer": "1", "tests": []}
# What breaks a rule, as a value of some key, and what is said.
BROKEN = {
    "half a pair": (b'"\\ud83d end"', "'text' holds half a surrogate pair"),
    "the other half": (b'"\\uDC00"', "'text' holds half a surrogate pair"),
    "half a pair inside": (b'{"a": ["\\ud83d"]}', "'text' holds half a surrogate pair"),
    "3,000 levels": (b"[" * 3000 + b"]" * 3000, "JSON nested more than 100 levels"),
    "101 levels": (b"[" * 101 + b"]" * 101, "JSON nested more than 100 levels"),
    "levels without end": (b"[" * 100_000, "JSON nested more than 100 levels"),
    "a long number": (b"9" * 5000, "not JSON (Exceeds the limit"),
    "a key twice": (b'{"a": 1, "a": 2}', "not JSON (key 'a' comes twice"),
    "a byte that is no text": (b'"\xff"', "not UTF-8"),
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
    with pytest.raises(DataError, match=r"empty corpus, not one document with text \(100 blank\)"):
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
    with pytest.raises(ConfigError, match=r"a\.yaml: nested too deep"):
        load_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_override("a=" + "[" * 3000)
