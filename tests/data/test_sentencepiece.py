"""Folders with only a `tokenizer.model`, compared with SentencePiece itself."""

from __future__ import annotations

import json

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizer_folders import sentencepiece_folder

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.token_files import TokenFile
from megatron_prism.data.tokenization import write_tokens
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError

LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
TEXTS = [
    "Hello there",
    "",
    " ",
    "  two  spaces ",
    "line\n\n\tindented\r\n",
    "12345 3.14",
    "naïve ﬁ Ａ１ é e\u0301 你好 😀 \u00a0\u200b",
    "the </s> of <s> and <unk> ▁ <0x0A>",
    "a\x00b",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def folder(request, tmp_path_factory):
    return sentencepiece_folder(tmp_path_factory.mktemp(request.param), request.param, **LLAMA)


@pytest.fixture(scope="module")
def reference(folder):
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_the_ids_are_sentencepieces(folder, reference, tmp_path):
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.policy.begin, tokenizer.policy.end) == ((reference.bos_id(),), (reference.eos_id(),))
    assert tokenizer.vocab_size == reference.vocab_size()
    plain = [reference.encode(text) for text in TEXTS]
    assert tokenizer.encode_fragments(TEXTS) == plain
    assert tokenizer.encode_batch(TEXTS) == [reference.encode(text, add_bos=True) for text in TEXTS]
    documents = [reference.encode(text, add_bos=True, add_eos=True) for text in TEXTS]
    assert tokenizer.encode_documents(TEXTS) == documents
    assert [tokenizer.decode(ids) for ids in plain] == [reference.decode(ids) for ids in plain]
    write_tokens(TEXTS, tokenizer, tmp_path / "x")
    file = TokenFile.open(tmp_path / "x")
    assert [file.document(i).tolist() for i in range(len(TEXTS))] == documents


def test_a_folder_with_only_the_model(folder, reference, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    # Like transformers: nothing in such a folder requests a start token.
    assert (tokenizer.policy.begin, tokenizer.eos_id) == ((), reference.eos_id())
    assert tokenizer.encode(TEXTS[0]) == reference.encode(TEXTS[0])
    with_begin = Tokenizer.load(tmp_path, TextSettings(begin="<s>"))
    assert with_begin.encode(TEXTS[0]) == reference.encode(TEXTS[0], add_bos=True)
    assert with_begin.identity == tokenizer.identity == Tokenizer.load(folder).identity


def test_special_tokens_in_a_text(folder, reference):
    text = "the </s> of <s>x"
    bos, eos = reference.bos_id(), reference.eos_id()
    assert not {bos, eos} & set(Tokenizer.load(folder).encode_fragment(text))
    parsing = Tokenizer.load(folder, TextSettings(special_tokens="parse"))
    ids = parsing.encode(text)
    assert [number for number in ids if number in (bos, eos)] == [bos, eos, bos]
    assert ids[: ids.index(eos)] == reference.encode("the ", add_bos=True)
    assert parsing.decode(ids).replace(" ", "") == f"<s>{text}".replace(" ", "")
    # Text after a special token does not get the leading space of a text.
    assert parsing.decode(ids[-1:]) == "x"
    assert ids[-1] == reference.piece_to_id("x")
    with pytest.raises(DataError, match=r"contains the name of the special token '</s>'"):
        Tokenizer.load(folder, TextSettings(special_tokens="refuse")).encode(text)


def test_added_tokens(folder, reference, tmp_path):
    size = reference.vocab_size()
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size}))
    decoder = {
        str(size): {"content": "<pad>", "special": True},
        str(size + 1): {"content": "<tool>", "special": False},
    }
    config = {"pad_token": "<pad>", "eos_token": "</s>", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (size + 2, size)
    ids = tokenizer.encode("the <tool>x<pad>")
    assert ids[: ids.index(size + 1)] == reference.encode("the ")
    assert size not in ids
    # SentencePiece itself drops the space at the end of a piece of text if it normalises.
    assert tokenizer.decode(ids).replace(" ", "") == "the<tool>x<pad>"
    assert tokenizer.decode_each([size, size + 1]) == ["<pad>", "<tool>"]
    assert size in Tokenizer.load(tmp_path, TextSettings(special_tokens="parse")).encode("<pad>")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64])
def test_damaged_models(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(
        DataError, match=r"tokenizer.model: (not a SentencePiece model|a SentencePiece model without)"
    ):
        Tokenizer.load(tmp_path)


def test_configs_that_do_not_fit_the_model(folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    for config, message in (
        ({"eos_token": "<|im_end|>"}, r"eos_token '<\|im_end\|>' is not in tokenizer.model"),
        ({"add_bos_token": True, "bos_token": "<bos>"}, "add_bos_token=true, but there is no bos_token"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match=message):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"architecture.vocab_size=10, but the tokenizer .* has 420"):
        Tokenizer.load_for(tmp_path, 10)
