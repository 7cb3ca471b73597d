"""Reading a response: fields that a server may leave out, and token ids if it reports none."""

from __future__ import annotations

import pytest

from megatron_prism.data.tokenizer import train_tokenizer
from megatron_prism.errors import ServerError
from megatron_prism.generation.completions_api import check_prompt, read_response
from megatron_prism.generation.engine import Completion, SamplingParams

PARAMS = SamplingParams(stop=["\n\n"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte-level: a token may be part of a character."""
    texts = ["the cat sat on the mat, the rat sat on the cat"] * 4
    return train_tokenizer(texts, 270, tmp_path_factory.mktemp("tokenizer"))


def answer(text, tokens=None, finish="length", **more):
    choice = {"text": text, "finish_reason": finish, **more}
    if tokens is not None:
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens)}
    return {"choices": [choice]}


def tokens_of(tokenizer, ids):
    return [tokenizer.decode([item]) for item in ids]


def test_tokens_that_the_encoder_would_not_choose_are_kept(tokenizer):
    """The model may sample different tokens for a word from those of the tokenizer."""
    ids = [*tokenizer.encode("t"), *tokenizer.encode("h"), *tokenizer.encode("e"), *tokenizer.encode(" cat")]
    assert ids != tokenizer.encode("the cat")
    made = read_response(answer("the cat", tokens_of(tokenizer, ids)), PARAMS, True, tokenizer)
    assert made == Completion("the cat", ids, [-0.5] * len(ids), "length")


def test_the_end_token_and_the_stop_string_keep_their_tokens(tokenizer):
    ids = tokenizer.encode("the cat")
    tokens = [*tokens_of(tokenizer, ids), "<|endoftext|>"]
    ended = read_response(answer("the cat", tokens, "stop"), PARAMS, True, tokenizer)
    assert ended == Completion("the cat", [*ids, tokenizer.eos_id], [-0.5] * (len(ids) + 1), "stop")
    # If its name is spelled in ordinary tokens, it is text and not an end token.
    spelt = tokenizer.encode("<|endoftext|>")
    assert tokenizer.eos_id not in spelt
    spelled = read_response(answer("<|endoftext|>", tokens_of(tokenizer, spelt)), PARAMS, True, tokenizer)
    assert spelled.token_ids == spelt

    ids = tokenizer.encode("the\n\n")
    stopped = read_response(answer("the", tokens_of(tokenizer, ids), "stop"), PARAMS, True, tokenizer)
    assert (stopped.text, stopped.token_ids) == ("the", ids)
    # A server that reports 'length' because the stop string came with the last token.
    stopped = read_response(answer("the\n\n", tokens_of(tokenizer, ids)), PARAMS, True, tokenizer)
    assert (stopped.text, stopped.finish_reason) == ("the", "stop")


def test_parts_of_a_character(tokenizer):
    ids = tokenizer.encode("é")
    assert len(ids) == 2
    made = read_response(answer("é", ["\ufffd", "\ufffd"]), PARAMS, True, tokenizer)
    assert made.token_ids == ids
    with pytest.raises(
        ServerError, match="1 log-probabilities but 2 token ids; ask the server for token ids"
    ):
        read_response(answer("é", ["\ufffd"]), PARAMS, True, tokenizer)


def test_the_servers_ids_come_first(tokenizer):
    ids = [*tokenizer.encode("t"), *tokenizer.encode("he")]
    assert ids != tokenizer.encode("the")
    made = read_response(answer("the", ["t", "he"], token_ids=ids), PARAMS, True, tokenizer)
    assert made.token_ids == ids
    with pytest.raises(ServerError, match="2 log-probabilities but 3 token ids"):
        read_response(answer("the", ["t", "he"], token_ids=[*ids, 0]), PARAMS, True, tokenizer)


def test_ids_of_a_different_tokenizer(tokenizer):
    ids = tokenizer.encode("the cat")
    for text in ("the cat", " the cat ", "the c", "the cat<|endoftext|>"):
        assert read_response(answer(text, token_ids=[*ids, 0]), PARAMS, False, tokenizer).token_ids == [
            *ids,
            0,
        ]
    with pytest.raises(ServerError, match=r"decode to 'thecat' with this tokenizer, but its text is 'adog'"):
        read_response(answer("a dog", token_ids=ids), PARAMS, False, tokenizer)


@pytest.mark.parametrize("as_ids", [True, False])
def test_the_prompt_that_a_server_read(as_ids):
    sent = [5, 6, 7]
    unknown = [
        {},
        {"usage": None},
        {"usage": {"prompt_tokens": 0}},
        {"usage": {"prompt_tokens": "3"}},
        [],
        None,
    ]
    right = [{"usage": {"prompt_tokens": 3}}, {"choices": [{"prompt_token_ids": sent}], "usage": {}}]
    for each in unknown + right:
        check_prompt(each, sent, as_ids)
    message = "adds tokens to prompts" if as_ids else "uses a different start token"
    for each, count in (
        ({"usage": {"prompt_tokens": 4}}, 4),
        ({"usage": {"prompt_tokens": 2}}, 2),
        ({"choices": [{"prompt_token_ids": [5, 6, 8]}], "usage": {"prompt_tokens": 3}}, 3),
        ({"choices": [{}], "prompt_token_ids": [2, 5, 6, 7]}, 4),
    ):
        with pytest.raises(ServerError, match=f"read a prompt of {count} tokens.*{message}"):
            check_prompt(each, sent, as_ids)


def test_texts_without_token_ids(tokenizer):
    assert read_response(answer("ab"), PARAMS, False, None) == Completion("ab", [], [], "length")
    assert read_response(answer("ab"), PARAMS, False, tokenizer).token_ids == tokenizer.encode("ab")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (answer("ab"), "no log-probabilities"),
        (answer("ab", logprobs={"token_logprobs": [None, -1.0]}), "no log-probabilities"),
        (answer("ab", logprobs={"token_logprobs": [float("nan"), -1.0]}), "no log-probabilities"),
        (answer("ab", ["a", "b"]), "no token ids; give the engine a tokenizer"),
        (answer("ab", ["a", "b"], finish="content_filter"), "finish_reason='content_filter'"),
        (answer("ab", ["a", "b"], finish=None), "finish_reason=None"),
        (answer(None), r"no choices\[0\].text"),
        ({"choices": []}, r"no choices\[0\].text"),
        (["ab"], r"no choices\[0\].text"),
    ],
)
def test_missing_and_invalid_fields_are_named(response, message):
    with pytest.raises(ServerError, match=message):
        read_response(response, PARAMS, True, None)
