"""A tokenizer that is named at export: transformers' config, generation config and tokenizer agree afterwards."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, make_tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from megatron_prism.conversion.export_hf import write_side_files
from megatron_prism.conversion.token_ids import TOKEN_IDS, disagreements
from megatron_prism.errors import ArtifactError
from megatron_prism.models.families import architecture_from_config

END, PAD, A, B = 0, 1, 34, 35


def tokenizer(folder, vocabulary=VOCABULARY, **changes):
    """The tiny models' tokenizer with other special tokens; None takes one away."""
    make_tokenizer(folder, vocabulary)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def came_with(folder, generation=None, **config):
    """The files that came with a model: its tokenizer and both configs."""
    tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def export(tmp_path, files, given):
    (tmp_path / "out").mkdir()
    architecture = architecture_from_config(CONFIGS["llama"])
    return write_side_files(tmp_path / "out", architecture, files, given, torch.float32)


def agree(folder):
    """What transformers reads from the three files; every id the tokenizer has is the others', too."""
    read = AutoTokenizer.from_pretrained(folder)
    for config in (AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)):
        for key in TOKEN_IDS:
            ids, own = getattr(config, key), getattr(read, key)
            assert own == ids or own in (ids if isinstance(ids, list) else []), (type(config), key)
    return AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)


def test_the_tokenizers_ids_win_and_each_change_is_said(tmp_path):
    files = came_with(tmp_path / "hf", {"eos_token_id": END, "pad_token_id": PAD, "bos_token_id": END})
    given = tokenizer(tmp_path / "new", eos_token="A", bos_token="B")
    said = export(tmp_path, files, given)
    config, generation = agree(tmp_path / "out")
    assert (config.eos_token_id, generation.eos_token_id) == (A, A)
    assert (config.bos_token_id, config.pad_token_id) == (B, PAD)
    assert "config.json: eos_token_id 0 becomes 34, as the tokenizer says" in said
    assert len(said) == 4


def test_a_list_of_end_tokens_that_still_holds_stays(tmp_path):
    """A chat model stops at two tokens; its tokenizer names one of them."""
    generation = {"eos_token_id": [END, A], "pad_token_id": PAD, "bos_token_id": END, "suppress_tokens": [B]}
    files = came_with(tmp_path / "hf", generation, eos_token_id=[END, A])
    said = export(tmp_path, files, tokenizer(tmp_path / "new", eos_token="A", bos_token="<|endoftext|>"))
    config, written = agree(tmp_path / "out")
    assert config.eos_token_id == written.eos_token_id == [END, A]
    assert written.suppress_tokens == [B]
    assert said == []


def test_ids_of_another_vocabulary_do_not_outlive_it(tmp_path):
    """Token 34 means something else now: neither the list nor a forced token may stay."""
    generation = {
        "eos_token_id": [END, A],
        "pad_token_id": PAD,
        "forced_bos_token_id": A,
        "suppress_tokens": [A],
    }
    files = came_with(tmp_path / "hf", generation, bos_token_id=A, sep_token_id=A)
    given = tokenizer(tmp_path / "new", eos_token="<|endoftext|>")
    content = json.loads((given / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (given / "tokenizer.json").write_text(json.dumps(content))
    export(tmp_path, files, given)
    config, written = agree(tmp_path / "out")
    assert written.eos_token_id == END
    assert config.bos_token_id is None
    assert json.loads((tmp_path / "out/config.json").read_text())["sep_token_id"] is None
    assert written.forced_bos_token_id is None
    assert written.suppress_tokens is None


def test_an_absent_id_is_written_where_transformers_would_fill_in_its_own(tmp_path):
    """LlamaConfig takes 2 for an absent eos_token_id."""
    files = came_with(tmp_path / "hf", {"pad_token_id": PAD})
    content = {key: value for key, value in CONFIGS["llama"].items() if not key.endswith("_token_id")}
    (files / "config.json").write_text(json.dumps(content))
    assert AutoConfig.from_pretrained(files).eos_token_id == 2
    export(tmp_path, files, tokenizer(tmp_path / "new"))
    assert AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == END


def test_a_model_without_files_takes_all_from_the_tokenizer(tmp_path):
    assert export(tmp_path, None, tokenizer(tmp_path / "new", eos_token="A")) == []
    agree(tmp_path / "out")


@pytest.mark.parametrize("came", [True, False])
def test_a_tokenizer_with_more_tokens_than_rows_is_refused(came, tmp_path):
    files = came_with(tmp_path / "hf") if came else None
    given = tokenizer(tmp_path / "new", vocabulary=VOCABULARY + 1)
    with pytest.raises(ArtifactError, match=r"new: token .+ is number 61, but the model has vocab_size=61"):
        export(tmp_path, files, given)


@pytest.mark.parametrize("damage", ["empty", "text"])
def test_a_folder_without_a_readable_tokenizer_is_one_line(damage, tmp_path):
    (tmp_path / "new").mkdir()
    if damage == "text":
        (tmp_path / "new/tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"new: (no tokenizer|its tokenizer cannot be loaded)") as caught:
        export(tmp_path, came_with(tmp_path / "hf"), tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_files_that_came_in_disagreement_are_said_and_kept(tmp_path):
    files = came_with(tmp_path / "hf", {"eos_token_id": [A]}, eos_token_id=B)
    (remark,) = export(tmp_path, files, None)
    assert (
        "no end token is common to all (eos_token_id in config.json: 35; generation_config.json: 34" in remark
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == B
    assert disagreements(came_with(tmp_path / "fine", {"eos_token_id": [A, END]}), VOCABULARY) == []
    assert "vocab_size=60" in disagreements(tmp_path / "fine", VOCABULARY - 1)[0]
