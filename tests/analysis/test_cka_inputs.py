"""The texts that `analyze cka` has without files."""

from __future__ import annotations

import pytest

from megatron_prism.analysis.cka.input_sets import MIN_PASSAGE, file_sets, installed_sets
from megatron_prism.errors import DataError


def test_three_sets_of_different_texts_need_no_download():
    sets = installed_sets(40)
    assert [each.name for each in sets] == ["reference", "web", "math"]
    assert all(len(set(each.texts)) == 40 for each in sets)
    assert all(len(text) >= MIN_PASSAGE for each in sets[:2] for text in each.texts)
    assert len({each.sha256 for each in sets}) == 3


def test_files_give_their_first_different_texts_and_a_hash_of_them(tmp_path):
    (tmp_path / "a#b.txt").write_text("one\n\n two \none\nthree\nfour\n")
    (first,) = file_sets(["a=a#b.txt"], 3, tmp_path)
    assert first.texts == ["one", "two", "three"]
    (tmp_path / "c.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n{"q": "three"}\n')
    (second,) = file_sets([f"c={tmp_path}/c.jsonl#q"], 3)
    assert second.sha256 == first.sha256
    (swapped,) = file_sets([f"c={tmp_path}/c.jsonl#q"], 2)
    assert swapped.sha256 != first.sha256
    with pytest.raises(DataError, match=r"c\.jsonl: 3 different texts, but samples=4; give more"):
        file_sets([f"c={tmp_path}/c.jsonl#q"], 4)
