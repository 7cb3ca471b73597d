import gzip
import json
import random

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megatron_prism.data import readers
from megatron_prism.data.readers import corpus_sources, read_texts
from megatron_prism.errors import DataError
from megatron_prism.pipeline import json_text

TEXTS = ["one", "zwei ß", "three\nlines\n", "四", "emoji 🙂 and \u2028 separator"]
LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS).encode()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        list(read_texts(path, **options))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda data: data),
        ("a.jsonl", lambda data: data.rstrip(b"\n")),
        ("a.jsonl", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\n")),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.compress),
        # Two frames in one file, as `cat a.zst b.zst` makes it.
        ("a.jsonl.zst", lambda data: zstandard.compress(data[:20]) + zstandard.compress(data[20:])),
    ],
    ids=["plain", "no last newline", "mark and crlf", "gzip", "zstd", "zstd frames"],
)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_json_lines(tmp_path, monkeypatch, name, pack, chunk):
    monkeypatch.setattr(json_text, "CHUNK_BYTES", chunk)
    assert list(read_texts(write(tmp_path / name, pack(LINES)))) == TEXTS


def test_a_different_text_key(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"content": "x", "text": "y"}')
    assert list(read_texts(path, text_key="content")) == ["x"]


def test_plain_text_is_one_document_and_unchanged(tmp_path):
    assert list(read_texts(write(tmp_path / "a.txt", b"a\r\nb\n\nc"))) == ["a\r\nb\n\nc"]


def test_a_long_text_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_TEXT", 50)
    text = "".join(f"line {number}\n" for number in range(40))
    pieces = list(read_texts(write(tmp_path / "a.md", text.encode())))
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all(piece.endswith("\n") and len(piece) < 60 for piece in pieces)


def test_parquet_by_row_groups(tmp_path):
    texts = [f"row {number}" for number in range(5000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": range(5000), "text": texts}), path, row_group_size=700)
    assert list(read_texts(path)) == texts


def test_a_folder_in_sorted_order_without_hidden_or_other_files(tmp_path):
    write(tmp_path / "b.txt", b"second")
    write(tmp_path / "a" / "z.jsonl", b'{"text": "first"}')
    write(tmp_path / "c.bin", b"\xff")
    write(tmp_path / ".cache" / "d.txt", b"hidden")
    assert list(read_texts(tmp_path)) == ["first", "second"]


def test_reading_streams(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\nnot json')
    texts = read_texts(path)
    assert next(texts) == "good"
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        next(texts)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"x", "unknown suffix '.csv'; known suffixes: .txt"),
        ("a.txt", b"", "empty corpus"),
        ("a.jsonl", b"\n\n", "empty corpus"),
        ("a.jsonl", b'{"text": ""}', "empty corpus"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl:3: not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: JSON nested more than 100 levels deep"),
        ("a.jsonl", b'["a"]', "a.jsonl:1: a JSON object is needed, found list"),
        ("a.jsonl", b'{"title": "a", "body": "b"}', "a.jsonl:1: no key 'text'; keys here: body, title"),
        ("a.jsonl", b'{"text": 5}', "a.jsonl:1: 'text' must be text, found int"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: 'text' holds half a surrogate"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:1: not UTF-8"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "damaged gzip"),
        ("a.jsonl.zst", b"no zstd at all", "damaged zstd"),
        ("a.parquet", b"no parquet", "damaged Parquet"),
    ],
)
def test_errors_name_the_place_and_the_reason(tmp_path, name, data, message):
    line = refusal(write(tmp_path / name, data))
    assert message in line
    assert str(tmp_path / name) in line
    assert "\n" not in line


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_archive(tmp_path, suffix):
    noise = random.Random(0).randbytes(4000).hex()
    data = json.dumps({"text": noise}).encode() + b"\n" + LINES
    packed = gzip.compress(data) if suffix == "gz" else zstandard.compress(data)
    path = write(tmp_path / f"a.jsonl.{suffix}", packed)
    assert len(list(read_texts(path))) == 1 + len(TEXTS)
    for cut in (len(packed) - 1, len(packed) // 2, 12):
        path.write_bytes(packed[:cut])
        assert "damaged" in refusal(path)


def test_a_flipped_bit(tmp_path):
    packed = bytearray(gzip.compress(LINES))
    packed[len(packed) // 2] ^= 0x10
    assert "damaged gzip" in refusal(write(tmp_path / "a.jsonl.gz", bytes(packed)))


def test_missing(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "a.jsonl")
    assert "no readable file in this folder" in refusal(tmp_path)


def test_parquet_columns(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), path)
    assert "no column 'text'; columns here: id, body" in refusal(path)
    assert "row 1: 'id' must be text, found int" in refusal(path, text_key="id")
    parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    assert "row 2: 'text' must be text, found NoneType" in refusal(path)


def test_an_empty_corpus_folder(tmp_path):
    with pytest.raises(DataError, match="so the corpus is empty"):
        corpus_sources(tmp_path, "train")
