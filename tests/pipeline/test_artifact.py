from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import (
    RECEIPT,
    RESUME,
    Artifact,
    Receipt,
    partial_path,
    seal,
    write_json,
)
from megatron_prism.pipeline.file_hash import hash_files


@pytest.fixture
def sealed(tmp_path: Path) -> Artifact:
    final = tmp_path / "corpus-1"
    partial = partial_path(final)
    (partial / "train").mkdir(parents=True)
    (partial / "train" / "web.txt").write_text("hello")
    receipt = Receipt("corpus", "f" * 64, "corpus", {"seed": 1}, {}, metrics={"documents": 1})
    return seal(partial, final, receipt)


def test_seal_lists_outputs_and_leaves_no_partial_folder(sealed: Artifact) -> None:
    assert [output.path for output in sealed.receipt.outputs] == ["train/web.txt"]
    assert sealed.receipt.outputs[0].size == 5
    assert not partial_path(sealed.path).exists()
    again = Artifact.open(sealed.path, kind="corpus")
    assert again.receipt == sealed.receipt
    assert again.file("train/web.txt").read_text() == "hello"
    again.verify()


def test_seal_replaces_an_older_folder(sealed: Artifact) -> None:
    partial = partial_path(sealed.path)
    partial.mkdir()
    (partial / "new.txt").write_text("new")
    seal(partial, sealed.path, Receipt("corpus", "e" * 64, "corpus", {}, {}))
    assert sorted(path.name for path in sealed.path.iterdir()) == ["new.txt", RECEIPT]
    assert [path.name for path in sealed.path.parent.iterdir()] == [sealed.path.name]


def test_changed_size_and_missing_output_are_named(sealed: Artifact) -> None:
    output = sealed.path / "train" / "web.txt"
    output.write_text("hello!")
    with pytest.raises(ArtifactError, match=r"web\.txt: the file has 6 bytes, but receipt\.json records 5"):
        Artifact.open(sealed.path)
    output.unlink()
    with pytest.raises(
        ArtifactError, match=r"web\.txt: the file is listed in receipt\.json but does not exist"
    ):
        Artifact.open(sealed.path)


def test_verify_finds_changed_bytes_of_the_same_size(sealed: Artifact) -> None:
    (sealed.path / "train" / "web.txt").write_text("jello")
    opened = Artifact.open(sealed.path)
    with pytest.raises(ArtifactError, match="contents do not match"):
        opened.verify()


def test_half_written_unreadable_and_foreign_folders(sealed: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artifact folder"):
        Artifact.open(tmp_path / "absent")
    (tmp_path / "half").mkdir()
    with pytest.raises(ArtifactError, match="incomplete"):
        Artifact.open(tmp_path / "half")
    receipt = sealed.path / RECEIPT
    whole = receipt.read_text()
    receipt.write_text(whole[:40])
    with pytest.raises(ArtifactError, match=r"not JSON .*run again with --force"):
        Artifact.open(sealed.path)
    receipt.write_text(json.dumps({"kind": "corpus"}))
    with pytest.raises(ArtifactError, match="not a valid receipt"):
        Artifact.open(sealed.path)
    receipt.write_text("[1]")
    with pytest.raises(ArtifactError, match=r"JSON object is needed.*run again with --force"):
        Artifact.open(sealed.path)
    receipt.write_text(whole)
    with pytest.raises(ArtifactError, match="kind 'corpus', but kind 'tokens' is needed"):
        Artifact.open(sealed.path, kind="tokens")


def test_file_that_is_not_there(sealed: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"valid\.txt"):
        sealed.file("valid.txt")


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}


def test_what_a_run_resumes_from_is_kept_until_the_artifact_is_complete(tmp_path: Path, monkeypatch) -> None:
    final = tmp_path / "train-1"
    partial = partial_path(final)
    (partial / RESUME / "step_1").mkdir(parents=True)
    (partial / RESUME / "step_1" / "state").write_text("needed")
    (partial / "model").write_text("made")
    rename = os.rename

    def checked(source, target):
        assert (Path(source) / RESUME / "step_1" / "state").exists(), "deleted before the seal"
        assert [each.path for each in receipt.outputs] == ["model"]
        rename(source, target)

    monkeypatch.setattr(os, "rename", checked)
    receipt = Receipt("train", "f" * 64, "train", {}, {})
    sealed = seal(partial, final, receipt)
    assert sorted(path.name for path in sealed.path.iterdir()) == ["model", RECEIPT]


def test_long_files_have_a_tree_hash_and_old_receipts_still_verify(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10
    (tmp_path / "long").write_bytes(content)
    (tmp_path / "short").write_bytes(content[:1000])
    (tmp_path / "empty").write_bytes(b"")
    long, short, empty = hash_files([tmp_path / name for name in ("long", "short", "empty")], 1000)
    parts = [content[start : start + 1000] for start in (0, 1000, 2000)]
    tree = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    assert (long.size, long.sha256, long.chunk_bytes) == (2560, tree, 1000)
    assert (short.sha256, short.chunk_bytes) == (hashlib.sha256(content[:1000]).hexdigest(), 0)
    assert (empty.sha256, empty.chunk_bytes) == (hashlib.sha256().hexdigest(), 0)
    plain = {"path": "long", "size": 2560, "sha256": hashlib.sha256(content).hexdigest()}
    with_tree = {"path": "long", "size": 2560, "sha256": tree, "chunk_bytes": 1000}
    for output in (plain, with_tree):
        receipt = asdict(Receipt("x", "f" * 64, "x", {}, {})) | {"outputs": [output]}
        write_json(tmp_path / RECEIPT, receipt)
        Artifact.open(tmp_path).verify()
        (tmp_path / "long").write_bytes(content[:-1] + b"?")
        with pytest.raises(ArtifactError, match="contents do not match"):
            Artifact.open(tmp_path).verify()
        (tmp_path / "long").write_bytes(content)
