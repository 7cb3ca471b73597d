from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import RECEIPT, Artifact, Receipt, partial_path, seal, write_json


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
