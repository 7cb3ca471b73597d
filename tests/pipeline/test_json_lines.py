"""Files of records: any text of a model is read back as written, and an incomplete file never appears."""

from __future__ import annotations

import pytest

from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.json_text import read_records

RECORDS = [
    {"text": "a\u2028b\n\u00e9\U0001f600", "n": 1},
    {"text": "half a pair: \ud83d", "list": [None, 2.5]},
]


@pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.zst"])
def test_what_is_written_is_read_back(name, tmp_path):
    path = tmp_path / "made" / name
    with record_writer(path) as write:
        for record in RECORDS:
            write(record)
        assert not path.exists()
    assert [record for record, _ in read_records(path, keep_half_pairs=True)] == RECORDS
    assert [each.name for each in path.parent.iterdir()] == [name]
    if name.endswith(".jsonl"):
        assert path.read_bytes().isascii()


def test_utf8_is_written_as_it_is(tmp_path):
    path = tmp_path / "records.jsonl"
    with record_writer(path, "utf-8") as write:
        write(RECORDS[0])
    assert "\u00e9\U0001f600" in path.read_text(encoding="utf-8")
    assert [record for record, _ in read_records(path)] == RECORDS[:1]


def write_one_and_fail(path):
    with record_writer(path) as write:
        write({"lost": 1})
        raise KeyError


def test_after_an_error_there_is_what_was_there_before(tmp_path):
    path = tmp_path / "records.jsonl.zst"
    with record_writer(path) as write:
        write({"kept": 1})
    with pytest.raises(KeyError):
        write_one_and_fail(path)
    assert [record for record, _ in read_records(path)] == [{"kept": 1}]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
