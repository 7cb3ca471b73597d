"""A tokenizer that is named at export: transformers' config, generation config and tokenizer agree afterwards."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, make_tokenizer
from tokenizer_folders import sentencepiece_folder
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from megatron_prism.conversion.export_hf import write_side_files
from megatron_prism.conversion.side_files.token_ids import TOKEN_IDS, disagreements
from megatron_prism.errors import ArtifactError
from megatron_prism.models.families import architecture_from_config

END, PAD, A, B = 0, 1, 34, 35


def tokenizer(folder, vocabulary=VOCABULARY, **changes):
    """The tiny models' tokenizer with other special tokens; None removes one."""
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
    return write_side_files(tmp_path / "out", architecture, files=files, tokenizer=given, dtype=torch.float32)


def agree(folder):
    """The ids that transformers reads from the three files. Every id of the tokenizer must be in the others, too."""
    read = AutoTokenizer.from_pretrained(folder)
    for config in (AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)):
        for key in TOKEN_IDS:
            ids, own = getattr(config, key), getattr(read, key)
            assert own == ids or own in (ids if isinstance(ids, list) else []), (type(config), key)
    return AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)


def test_the_tokenizers_ids_replace_others_with_a_remark(tmp_path):
    files = came_with(tmp_path / "hf", {"eos_token_id": END, "pad_token_id": PAD, "bos_token_id": END})
    given = tokenizer(tmp_path / "new", eos_token="A", bos_token="B")
    remarks = export(tmp_path, files, given)
    config, generation = agree(tmp_path / "out")
    assert (config.eos_token_id, generation.eos_token_id) == (A, A)
    assert (config.bos_token_id, config.pad_token_id) == (B, PAD)
    assert "config.json: eos_token_id 0 becomes 34, as in the tokenizer" in remarks
    assert len(remarks) == 4


def test_a_list_of_end_tokens_that_is_still_valid_is_kept(tmp_path):
    """A chat model stops at two tokens; its tokenizer names one of them."""
    generation = {"eos_token_id": [END, A], "pad_token_id": PAD, "bos_token_id": END, "suppress_tokens": [B]}
    files = came_with(tmp_path / "hf", generation, eos_token_id=[END, A])
    remarks = export(tmp_path, files, tokenizer(tmp_path / "new", eos_token="A", bos_token="<|endoftext|>"))
    config, written = agree(tmp_path / "out")
    assert config.eos_token_id == written.eos_token_id == [END, A]
    assert written.suppress_tokens == [B]
    assert remarks == []


def test_ids_of_another_vocabulary_are_replaced(tmp_path):
    """Token 34 is another token now, so neither the list nor a forced token may stay."""
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
    """LlamaConfig uses 2 if eos_token_id is absent."""
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
    with pytest.raises(ArtifactError, match=r"new: token .+ has the id 61, but the model has vocab_size=61"):
        export(tmp_path, files, given)


@pytest.mark.parametrize("damage", ["empty", "text"])
def test_a_folder_without_a_readable_tokenizer_is_refused_in_one_line(damage, tmp_path):
    (tmp_path / "new").mkdir()
    if damage == "text":
        (tmp_path / "new/tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"new: (no tokenizer|its tokenizer cannot be loaded)") as caught:
        export(tmp_path, came_with(tmp_path / "hf"), tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_contradicting_files_are_kept_with_a_remark(tmp_path):
    files = came_with(tmp_path / "hf", {"eos_token_id": [A]}, eos_token_id=B)
    (remark,) = export(tmp_path, files, None)
    assert (
        "the files have no end token in common (eos_token_id in config.json: 35; generation_config.json: 34"
        in remark
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == B
    assert disagreements(came_with(tmp_path / "fine", {"eos_token_id": [A, END]}), VOCABULARY) == []
    assert "vocab_size=60" in disagreements(tmp_path / "fine", VOCABULARY - 1)[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<|new|>": VOCABULARY}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(VOCABULARY): {"content": "<|new|>"}}}),
        ("tokenizer_config.json", {"eos_token": "<|new|>"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<|new|>"]}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<|new|>"]}),
    ],
)
def test_a_token_beyond_the_model_is_found_in_every_file(file, content, tmp_path):
    """transformers adds it to the vocabulary of tokenizer.json, and the model has no row for it."""
    folder = came_with(tmp_path / "hf")
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | content))
    assert len(AutoTokenizer.from_pretrained(folder)) == VOCABULARY + 1
    (remark,) = disagreements(folder, VOCABULARY)
    assert "'<|new|>'" in remark
    assert f"vocab_size={VOCABULARY}" in remark


def sentencepiece(folder):
    sentencepiece_folder(folder, "bpe", tokenizer_class="LlamaTokenizer", eos_token="</s>")
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"vocab_size": 420, "eos_token_id": 7}))
    return folder


def test_a_folder_with_nothing_but_a_sentencepiece_model_is_compared_too(tmp_path):
    folder = sentencepiece(tmp_path / "hf")
    (end,) = disagreements(folder, 420)
    assert "the files have no end token in common (eos_token_id in config.json: 7; the tokenizer: 2)" in end
    large, _ = disagreements(folder, 419)
    assert "the id 419, but the model has vocab_size=419" in large
    (folder / "tokenizer.model").write_bytes(b"no model")
    assert "tokenizer.model: not a SentencePiece model" in disagreements(folder, 420)[0]


def test_a_list_of_end_tokens_is_kept_with_the_same_sentencepiece_model(tmp_path):
    folder = sentencepiece(tmp_path / "hf")
    content = CONFIGS["llama"] | {"vocab_size": 420, "eos_token_id": [2, 7], "bos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(content | {"pad_token_id": None}))
    (tmp_path / "out").mkdir()
    assert (
        write_side_files(
            tmp_path / "out",
            architecture_from_config(content),
            files=folder,
            tokenizer=folder,
            dtype=torch.float32,
        )
        == []
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == [2, 7]


def test_an_end_token_of_the_special_tokens_map_counts(tmp_path):
    folder = came_with(tmp_path / "hf")
    tokenizer(folder, eos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "A"}))
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == A
    (remark,) = disagreements(folder, VOCABULARY)
    assert f"config.json: {END}; the tokenizer: {A}" in remark


@pytest.mark.parametrize("value", [["</s>"], 5, {"x": 1}])
def test_an_end_token_that_is_not_a_name_gives_a_remark(value, tmp_path):
    folder = came_with(tmp_path / "hf")
    tokenizer(folder, eos_token=value)
    (remark,) = disagreements(folder, VOCABULARY)
    assert "tokenizer_config.json: eos_token=" in remark
    assert "is not the name of a token" in remark


@pytest.mark.parametrize(
    ("key", "value"),
    [("pad_token_id", VOCABULARY), ("pad_token_id", [0]), ("eos_token_id", "0"), ("eos_token_id", [END, 1e9])]
    + [("eos_token_id", [END, VOCABULARY]), ("bos_token_id", True), ("bos_token_id", 0.0)],
)
def test_an_id_without_a_row_gives_a_remark(key, value, tmp_path):
    folder = came_with(tmp_path / "hf", **{key: value})
    remark = disagreements(folder, VOCABULARY)[0]
    assert f"config.json: {key}={value!r} is not an id of this model (vocab_size={VOCABULARY})" in remark


@pytest.mark.parametrize(
    ("key", "value"), [("pad_token_id", -1), ("pad_token_id", None), ("eos_token_id", [])]
)
def test_an_id_that_means_no_token_gives_no_remark(key, value, tmp_path):
    assert disagreements(came_with(tmp_path / "hf", **{key: value}), VOCABULARY) == []


def test_a_new_config_takes_its_ids_from_the_models_tokenizer(tmp_path):
    """LlamaConfig would fill in 2 as the end token."""
    files = tokenizer(tmp_path / "hf", eos_token="A")
    export(tmp_path, files, None)
    assert AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == A
