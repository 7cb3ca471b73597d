"""Start and end tokens of texts, compared with transformers, and names of special tokens in texts."""

from __future__ import annotations

import json
import logging

import pytest
import zstandard
from tokenizer_folders import BOS, EOS, FAMILIES, byte_level, family, metaspace, save, template, with_begin
from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as Tokenizers
from transformers import AutoTokenizer

from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.text_record import check_model, check_tokens, read_record
from megatron_prism.data.token_files import TokenFile
from megatron_prism.data.tokenization import TokenizeCorpus, write_tokens
from megatron_prism.data.tokenizer import ModelTokenizer, Tokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact, Receipt

TEXTS = ["ABC", "", "the  answer, in all\n", "é 😀 12"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return with_begin(tmp_path_factory.mktemp("begun"))


@pytest.mark.parametrize(("name", "begin"), FAMILIES.items())
def test_start_tokens_are_those_of_transformers(name, begin, tmp_path):
    folder = family(name, tmp_path)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))
    assert ours.policy.begin == (() if begin is None else (theirs.convert_tokens_to_ids(begin),))
    assert ours.eos_id == theirs.eos_token_id
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.encode_documents([text]) == [[*ids, theirs.eos_token_id]]
        assert ours.encode_fragment(text) == theirs(text, add_special_tokens=False)["input_ids"]
    # Negative control: without the policy the ids differ, unless the family has no start token.
    bare = Tokenizer.load(folder, TextSettings(begin="none"))
    assert (bare.encode("ABC") == theirs("ABC")["input_ids"]) is (begin is None)


@pytest.mark.parametrize(
    "kind", ["begin and end", "end", "roberta", "bert", "nothing", "config against template"]
)
def test_other_post_processors(kind, tmp_path):
    tokenizer, config = byte_level(), {"bos_token": BOS}
    begin, end = (EOS, tokenizer.token_to_id(EOS)), (BOS, tokenizer.token_to_id(BOS))
    if kind == "begin and end":
        tokenizer.post_processor = template(tokenizer, f"{BOS} $A {EOS}", BOS, EOS)
    elif kind == "end":
        tokenizer.post_processor = template(tokenizer, f"$A {EOS}", EOS)
    elif kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(begin, end)
    elif kind == "bert":
        tokenizer.post_processor = processors.BertProcessing(begin, end)
    elif kind == "config against template":
        # transformers 5 follows tokenizer.json, and so do we.
        config |= {"add_bos_token": True}
    folder = save(tokenizer, tmp_path, **config)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))
    whole = theirs("ABC")["input_ids"]
    ended = whole[-1:] == [theirs.eos_token_id]
    assert ours.encode_documents(["ABC"]) == [whole if ended else [*whole, theirs.eos_token_id]]
    assert ours.encode("ABC") == (whole[:-1] if ended else whole)


def test_shoebox_documents_keep_their_ids(tokenizer_artifact, corpus, tokens):
    """The shoebox tokenizer adds nothing, so models that were trained with it do not change."""
    from megatron_prism.data.readers import corpus_sources, read_texts

    raw = Tokenizers.from_file(str(tokenizer_artifact.file("tokenizer.json")))
    raw.encode_special_tokens = True
    file = TokenFile.open(tokens.path / "train" / "math")
    for index, text in enumerate(read_texts(corpus_sources(corpus.path, "train")["math"])):
        expected = [*raw.encode(text, add_special_tokens=False).ids, 0]
        assert file.document(index).tolist() == expected
        if index == 100:
            break


@pytest.mark.parametrize(
    ("settings", "encoded", "document"),
    [
        ({}, f"{BOS}A", f"{BOS}A{EOS}"),
        ({"begin": "none"}, "A", f"A{EOS}"),
        ({"begin": EOS}, f"{EOS}A", f"{EOS}A{EOS}"),
        ({"end": BOS}, f"{BOS}A", f"{BOS}A{BOS}"),
    ],
)
def test_policies_that_a_user_sets(settings, encoded, document, begun):
    tokenizer = Tokenizer.load(begun, TextSettings(**settings))
    assert tokenizer.decode(tokenizer.encode("A")) == encoded
    assert tokenizer.decode(tokenizer.encode_documents(["A"])[0]) == document
    assert len(tokenizer.encode_documents(["A"])[0]) == document.count("<") + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"begin": "<bos>"}, r"text.begin='<bos>': .*tokenizer.json has no token of this name"),
        ({"begin": ""}, "begin='': must be"),
        ({"end": "none"}, "end='none': documents need an end"),
        (
            {"special_tokens": "spell-out"},
            "special_tokens='spell-out' is not possible; did you mean 'spell_out'",
        ),
    ],
)
def test_impossible_choices(settings, message, begun):
    with pytest.raises(ConfigError, match=message):
        Tokenizer.load(begun, TextSettings(**settings))


@pytest.mark.parametrize("shape", ["bytes", "merged", "unigram", "metaspace", "not marked"])
def test_the_name_of_a_special_token_is_spelled_out_parsed_or_refused(shape, tmp_path):
    if shape == "metaspace":
        tokenizer = metaspace()
    elif shape == "unigram":
        # As in converted SentencePiece models: control tokens are pieces of the vocabulary with the best score.
        pieces = [("<unk>", 0.0), (BOS, 0.0), (EOS, 0.0), *((c, -5.0) for c in "ab<>/s ")]
        tokenizer = Tokenizers(models.Unigram(pieces, unk_id=0))
        tokenizer.add_special_tokens([BOS, EOS])
    elif shape == "merged":
        known = {c: i for i, c in enumerate("ab<>/s ")} | {"</": 7, "s>": 8, EOS: 9, BOS: 10}
        tokenizer = Tokenizers(models.BPE(vocab=known, merges=[("<", "/"), ("s", ">"), ("</", "s>")]))
        tokenizer.add_special_tokens([BOS, EOS])
    else:
        tokenizer = byte_level(() if shape == "not marked" else (BOS, EOS))
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in (BOS, EOS)])
    folder = save(tokenizer, tmp_path, bos_token=BOS)
    text = f"a{EOS}b {BOS}{EOS}"
    if shape in ("merged", "unigram"):
        tokenizer.encode_special_tokens = True
        assert tokenizer.token_to_id(EOS) in tokenizer.encode(text, add_special_tokens=False).ids, (
            "a real trap"
        )
    spelled = Tokenizer.load(folder)
    ids = spelled.encode_documents([text])[0]
    assert ids.count(spelled.eos_id) == 1
    assert ids[-1] == spelled.eos_id
    if shape not in ("merged", "unigram"):
        assert spelled.decode(ids[:-1]) == text
    parsed = Tokenizer.load(folder, TextSettings(special_tokens="parse"))
    theirs = AutoTokenizer.from_pretrained(str(folder))
    assert parsed.encode(text) == theirs(text)["input_ids"]
    assert parsed.encode(text).count(parsed.eos_id) == 2
    refusing = Tokenizer.load(folder, TextSettings(special_tokens="refuse"))
    assert refusing.encode("a/s b") == spelled.encode("a/s b")
    with pytest.raises(DataError, match=rf"text '.*' contains the name of the special token '{EOS}'"):
        refusing.encode_documents(["fine", text])


def test_a_rendered_template_gets_no_second_start_or_end_token(begun):
    parsing = Tokenizer.load(begun, TextSettings(special_tokens="parse"))
    assert parsing.encode(f"{BOS}ab") == parsing.encode("ab")
    assert parsing.encode_documents([f"{BOS}ab{EOS}"]) == parsing.encode_documents(["ab"])
    # Read as ordinary text, both names stay in the text.
    spelling = Tokenizer.load(begun)
    assert len(spelling.encode(f"{BOS}ab")) == 1 + len(BOS) + 2


def test_spelled_out_names_in_prompts_give_one_warning(begun, caplog):
    tokenizer = Tokenizer.load(begun)
    with caplog.at_level(logging.WARNING):
        tokenizer.encode("plain")
        assert not caplog.records
        tokenizer.encode_batch([f"a {EOS}", f"b {EOS}"])
        tokenizer.encode(f"c {EOS}")
    [line] = caplog.messages
    assert f"'{EOS}', and it is read as ordinary text" in line


def test_a_length_in_the_file_does_not_cut_or_pad_documents(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    folder = save(tokenizer, tmp_path)
    assert len(Tokenizer.load(folder).encode("a" * 50)) == 50
    assert len(Tokenizer.load(folder).encode("a")) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("special_tokens_map.json", {"eos_token": {"content": EOS}}),
        ("generation_config.json", {"eos_token_id": 257}),
        ("generation_config.json", {"eos_token_id": [257, 256]}),
        ("config.json", {"eos_token_id": 257, "model_type": "llama"}),
    ],
)
def test_an_end_token_from_another_file(file, content, tmp_path):
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / file).write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).eos_id == 257
    (tmp_path / "out").mkdir()
    model = tmp_path / "import"
    model.mkdir()
    (model / "hf").symlink_to(tmp_path)
    ModelTokenizer().run({"model": Artifact(model, Receipt("import", "", "", {}, {}))}, tmp_path / "out")
    assert Tokenizer.load(tmp_path / "out").eos_id == 257


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": [EOS]}, r'tokenizer_config.json: eos_token=\["</s>"\] is not the name of a token'),
        ({"eos_token": 5}, r"eos_token=5 is not the name of a token; write it as text"),
        ({"eos_token": {"id": 5}}, r"eos_token=.* is not the name of a token"),
        ({"eos_token": EOS, "pad_token": True}, r"pad_token=true is not the name of a token"),
        ([], r"tokenizer_config.json: expected an object with keys, found a list"),
        ({"eos_token": None}, r"no eos_token, and no eos_token_id"),
    ],
)
def test_configs_without_a_valid_token_name(config, message, tmp_path):
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_an_end_token_beyond_the_vocabulary(tmp_path):
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="JSON nested more than 100 levels deep"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 900}')
    with pytest.raises(DataError, match=r"generation_config.json: eos_token_id=900 is not in tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_differently_written_files_are_the_same_tokenizer(begun, tmp_path, tokenizer_artifact):
    AutoTokenizer.from_pretrained(str(begun)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, sort_keys=True))
    assert Tokenizer.load(tmp_path).identity == Tokenizer.load(begun).identity
    # With one token fewer, or two tokens swapped, it is a different tokenizer.
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary["A"] = vocabulary["A"], vocabulary["!"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).identity != Tokenizer.load(begun).identity
    assert Tokenizer.load(tokenizer_artifact.path).identity != Tokenizer.load(begun).identity


class Record(Artifact):
    """An artifact with only a folder and metrics."""

    def __init__(self, path, **metrics):
        super().__init__(path, Receipt("x", "", "", {}, {}, metrics=metrics))


def corpus_folder(folder, *texts):
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True)
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / split / "web.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))
    return Record(folder)


def test_tokens_record_their_tokenizer(begun, tmp_path, tokenizer_artifact, caplog):
    corpus = corpus_folder(tmp_path / "corpus", "one", f"two {EOS}")
    tokens, packed = tmp_path / "tokens", tmp_path / "packed"
    tokens.mkdir()
    packed.mkdir()
    metrics = TokenizeCorpus().run({"corpus": corpus, "tokenizer": Record(begun)}, tokens)
    tokenizer = Tokenizer.load(begun)
    assert metrics["text"] == read_record(tokens) == tokenizer.record()
    assert metrics["text"] | {"tokenizer": ""} == {
        **{"tokenizer": "", "begin": [BOS], "end": [EOS], "special_tokens": "spell_out"}
    }
    assert metrics["with_special_names"] == {"web": 1}
    file = TokenFile.open(tokens / "train" / "web")
    assert [file.document(i).tolist() for i in range(2)] == tokenizer.encode_documents(["one", f"two {EOS}"])
    PackDocuments(sequence_length=8).run({"tokens": Record(tokens)}, packed)
    for folder in (tokens, packed):
        assert check_tokens(folder, tokenizer, begun) == metrics["text"]
        with pytest.raises(ConfigError, match=r"made with a different tokenizer from .*tokenize the corpus"):
            check_tokens(folder, Tokenizer.load(tokenizer_artifact.path), tokenizer_artifact.path)
    caplog.clear()
    bare = Tokenizer.load(begun, TextSettings(begin="none"))
    check_tokens(tokens, bare, begun)
    check_model(Record(tmp_path, text=metrics["text"]), bare)
    assert len(caplog.messages) == 2
    assert all(f"begin with '{BOS}'" in line and "with nothing" in line for line in caplog.messages)
    caplog.clear()
    check_model(Record(tmp_path, text=metrics["text"]), tokenizer)
    check_model(Record(tmp_path), tokenizer)
    assert not caplog.messages


def test_a_changed_policy_changes_the_fingerprint():
    assert TokenizeCorpus().fingerprint({}) != TokenizeCorpus(TextSettings(begin="none")).fingerprint({})


def test_write_tokens_counts_what_is_added(begun, tmp_path):
    count = write_tokens(["", "ab"], Tokenizer.load(begun), tmp_path / "x")
    assert (count.documents, count.tokens) == (2, 2 + 4)
