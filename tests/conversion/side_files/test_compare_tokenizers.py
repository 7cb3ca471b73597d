"""Tokenizers are the same if they have the same effect, even if their files differ, and only then."""

from __future__ import annotations

import json
import re

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from megatron_prism.conversion.side_files.compare_tokenizers import PROBE, compare_tokenizers
from megatron_prism.errors import CheckpointError


@pytest.fixture(scope="module")
def bpe():
    """A small byte-level BPE, as a tokenizer.json."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat and the hat " * 20, "abcabc hello 123"], trainer)
    return json.loads(made.to_str())


def written(folder, content):
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def compared(tmp_path, bpe, change):
    other = json.loads(json.dumps(bpe))
    change(other)
    return compare_tokenizers(written(tmp_path / "a", bpe), written(tmp_path / "b", other)), other


def as_strings(content):
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]


def without_defaults(content):
    for key in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout", "unk_token"):
        content["model"].pop(key, None)


def in_a_sequence(content):
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"]]}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}


def reordered(content):
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    content["truncation"] = {"max_length": 7}
    content["pre_tokenizer"]["trim_offsets"] = not content["pre_tokenizer"]["trim_offsets"]


@pytest.mark.parametrize("change", [as_strings, without_defaults, in_a_sequence, reordered])
def test_equivalent_tokenizer_files_are_equal(change, tmp_path, bpe):
    found, other = compared(tmp_path, bpe, change)
    assert (found.conflict, found.choice, found.remark) == (None, None, None)
    other.pop("truncation", None)
    first, second = (Tokenizer.from_str(json.dumps(each)) for each in (bpe, other))
    assert first.encode(PROBE).ids == second.encode(PROBE).ids


def other_flag(content):
    content["added_tokens"][0]["special"] = False


def other_post_processor(content):
    content["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }


@pytest.mark.parametrize(
    ("change", "part"), [(other_flag, "added_tokens"), (other_post_processor, "post_processor")]
)
def test_a_difference_that_changes_no_id_is_a_remark(change, part, tmp_path, bpe):
    found, _ = compared(tmp_path, bpe, change)
    assert (found.conflict, found.choice) == (None, None)
    assert f" in '{part}'; this does not affect the ids" in found.remark


def other_normalizer(content):
    content["normalizer"] = {"type": "NFKC"}


def other_pre_tokenizer(content):
    content["pre_tokenizer"]["add_prefix_space"] = True


def other_merges(content):
    content["model"]["merges"].reverse()


def one_more(content):
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 300, "content": "<|user|>"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_normalizer, "splits text differently.*different: 'normalizer'"),
        (other_pre_tokenizer, "splits text differently.*different: 'pre_tokenizer'"),
        (other_merges, "splits text differently.*different: 'model'"),
        (one_more, r"has the token '<\|user\|>', which the other tokenizer does not have"),
    ],
)
def test_tokenizers_with_other_ids_need_a_choice(change, named, tmp_path, bpe):
    found, _ = compared(tmp_path, bpe, change)
    assert found.conflict is None
    assert found.choice is not None
    assert re.search(named, found.choice), found.choice


def swapped(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def renamed(content):
    content["added_tokens"][0]["content"] = "<|user|>"
    vocabulary = content["model"]["vocab"]
    vocabulary["<|user|>"] = vocabulary.pop("<|end|>")


@pytest.mark.parametrize(
    ("change", "named"), [(swapped, "token '[ab]' has the id"), (renamed, r"the id 0 is token '<\|user\|>'")]
)
def test_an_id_with_two_tokens_is_a_conflict(change, named, tmp_path, bpe):
    found, _ = compared(tmp_path, bpe, change)
    assert re.search(named, found.conflict), found.conflict


def test_files_without_a_tokenizer_json(tmp_path, bpe):
    """A SentencePiece file is compared by its bytes first, then as transformers reads it."""
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content)
    assert compare_tokenizers(tmp_path / "a", tmp_path / "b").choice is None
    assert "cannot be compared" in compare_tokenizers(tmp_path / "a", tmp_path / "c").choice
    assert "cannot be compared" in compare_tokenizers(tmp_path / "a", written(tmp_path / "d", bpe)).choice
    with pytest.raises(CheckpointError, match=r"e/tokenizer\.json: its tokenizer cannot be read"):
        compare_tokenizers(
            tmp_path / "d", written(tmp_path / "e", bpe | {"model": {"vocab": bpe["model"]["vocab"]}})
        )
