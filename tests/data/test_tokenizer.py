import json
import random
import sys

import pytest
from transformers import AutoTokenizer

from megatron_prism.data.readers import corpus_sources, read_texts
from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import END_OF_TEXT, PAD, Tokenizer, TrainTokenizer, train_tokenizer
from megatron_prism.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_artifact):
    return Tokenizer.load(tokenizer_artifact.path)


def strange_texts():
    rng = random.Random(4)
    valid = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    yield from (
        "",
        " ",
        "\n\n \t\r\n",
        "a\x00b",
        "e\u0301 \u200d 👩\u200d👧 ﷽",
        END_OF_TEXT,
        f"x{PAD} y{END_OF_TEXT}z",
    )
    for _ in range(60):
        yield "".join(chr(rng.choice(valid)) for _ in range(40))


def test_every_text_survives(tokenizer):
    texts = list(strange_texts())
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text


def test_a_document_cannot_end_itself(tokenizer, tokenizer_artifact):
    ids = tokenizer.encode(f"a{END_OF_TEXT}b{PAD}")
    assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    # Negative control: with special_tokens=parse they are special.
    parsing = Tokenizer.load(tokenizer_artifact.path, TextSettings(special_tokens="parse"))
    assert parsing.eos_id in parsing.encode(f"a{END_OF_TEXT}b")


def test_ids_and_sizes(tokenizer):
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 1, 700)
    assert tokenizer.decode([0, 1]) == END_OF_TEXT + PAD


def test_numbers_are_single_digits(tokenizer):
    for text in ("1234567890", "x=10+2345", "3.14", "1000000"):
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
        assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece))


def test_transformers_reads_the_folder(tokenizer, tokenizer_artifact, corpus):
    theirs = AutoTokenizer.from_pretrained(str(tokenizer_artifact.path))
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 1, 700)
    code = next(read_texts(corpus_sources(corpus.path, "valid")["code"]))
    texts = [code, "Straße 12 🙂", "  two  spaces\n\n"]
    for text in texts:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text


def test_the_prompt_is_a_prefix_of_the_document(tokenizer):
    prompt = "User: What is 12+30?\nAssistant:"
    document = tokenizer.encode(prompt + " <think>\nones 2+0=02\n</think>\n")
    assert document[: len(tokenizer.encode(prompt))] == tokenizer.encode(prompt)


def test_a_large_source_does_not_dominate_the_vocabulary(corpus, tmp_path):
    metrics = TrainTokenizer(vocab_size=300, max_bytes_per_source=2000).run(
        {"corpus": corpus}, tmp_path / "a"
    )
    sizes = metrics["bytes"]
    assert sizes.keys() == corpus_sources(corpus.path, "train").keys()
    assert all(2000 <= size < 30_000 for name, size in sizes.items() if name not in ("code", "web"))
    stage = TrainTokenizer(vocab_size=300, max_bytes_per_source=2000, source_weights={"code": 0, "math": 5})
    sizes = stage.run({"corpus": corpus}, tmp_path / "b")["bytes"]
    assert "code" not in sizes
    assert 10_000 <= sizes["math"] < 11_000
    with pytest.raises(ConfigError, match=r"source_weights\.maths"):
        TrainTokenizer(source_weights={"maths": 1}).run({"corpus": corpus}, tmp_path / "c")


def test_training_is_deterministic(corpus, tmp_path):
    texts = list(read_texts(corpus_sources(corpus.path, "train")["math"]))[:200]
    for name in ("a", "b"):
        train_tokenizer(texts, 300, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_too_little_text(tmp_path):
    with pytest.raises(DataError, match="yields only"):
        train_tokenizer(["a few words"], 5000, tmp_path)


@pytest.mark.parametrize(
    "fields", [{"vocab_size": 257}, {"max_bytes_per_source": 0}, {"source_weights": {"web": -1.0}}]
)
def test_impossible_settings(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        TrainTokenizer(**fields)


def test_end_token_written_as_an_object_and_no_padding(tokenizer_artifact, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_artifact.file("tokenizer.json").read_bytes())
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": PAD, "lstrip": False}}))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.eos_id, loaded.pad_id) == (1, 1)


def test_bad_folders(tokenizer_artifact, tmp_path):
    def refusal():
        with pytest.raises(DataError) as caught:
            Tokenizer.load(tmp_path)
        return str(caught.value)

    assert "tokenizer.json: missing" in refusal()
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_artifact.file("tokenizer.json").read_bytes())
    assert "tokenizer_config.json: no eos_token" in refusal()
    config = tmp_path / "tokenizer_config.json"
    for text, message in (
        ("{", "not JSON"),
        ("{}", "no eos_token"),
        ('{"eos_token": "<s>"}', "'<s>' is not in"),
    ):
        config.write_text(text)
        assert message in refusal()
    config.write_text('{"eos_token": "<|endoftext|>"}')
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    assert "not a tokenizer" in refusal()
