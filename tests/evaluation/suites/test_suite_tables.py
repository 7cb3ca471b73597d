"""Rows of files: the same table in every format, and files that are damaged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megatron_prism.errors import DataError
from megatron_prism.evaluation.suites.tables import read_rows

ROWS = [
    {"id": "a", "question": 'x, "y"\nand ü', "answer": "1"},
    {"id": "b", "question": "{z}", "answer": "2"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'id,question,answer\r\na,"x, ""y""\nand ü",1\r\nb,{z},2\r\n'


def files(folder: Path) -> dict[str, Path]:
    texts = {
        "a.jsonl": LINES,
        "b.json": json.dumps(ROWS),
        "c.json": LINES,
        "d.csv": CSV,
        "e.csv": "\ufeff" + CSV,
    }
    made = {}
    for name, text in texts.items():
        data = text.encode()
        made[name] = folder / name
        made[name].write_bytes(data)
        made[f"{name}.gz"] = folder / f"{name}.gz"
        made[f"{name}.gz"].write_bytes(gzip.compress(data))
    made["f.csv.zst"] = folder / "f.csv.zst"
    made["f.csv.zst"].write_bytes(zstandard.ZstdCompressor().compress(CSV.encode()))
    made["g.parquet"] = folder / "g.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), made["g.parquet"])
    return made


def test_every_format_has_the_same_rows(tmp_path):
    for path in files(tmp_path).values():
        found = list(read_rows(path))
        assert [row for row, _ in found] == ROWS, path
        assert all(where.startswith(str(path)) for _, where in found)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"id,q\na,b\xff\n", "a.csv:2: not UTF-8 text"),
        ("a.csv", b"id,q\na,b,c\n", "a.csv: row 1: 3 cells, but the first line names 2 columns"),
        ("a.csv", b"id,id\na,b\n", "a.csv: column 'id' occurs twice"),
        ("a.csv", b'id,q\na,"b\n', "a.csv: row 1: not CSV"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl:2: not JSON"),
        ("a.json", b'[{"a": 1}, 3]', "a.json: row 2: a JSON object is needed, found int"),
        ("a.json", b'[{"a": 1}', "a.json: not JSON"),
        ("a.parquet", b"PAR1", "a.parquet: damaged Parquet data"),
        ("a.csv.gz", gzip.compress(CSV.encode())[:-9], "a.csv.gz: damaged gzip data"),
        ("a.txt", b"", "a.txt: unknown ending; rows are read from .jsonl, .json, .csv, .parquet"),
        ("a.parquet.gz", b"", "unknown ending"),
    ],
)
def test_a_damaged_file_is_one_line(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
