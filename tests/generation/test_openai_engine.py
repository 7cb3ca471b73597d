"""OpenAIEngine with a server that really samples, compared with the model itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ServerError
from megatron_prism.generation.engine import SamplingParams, prompt_seeds
from megatron_prism.generation.openai_engine import OpenAIEngine

PROMPTS = ["ABC", "hello", "x"]
SAMPLED = SamplingParams(max_new_tokens=8, temperature=0.9, top_p=0.9, seed=4)
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def tokenizer(served_folder):
    return Tokenizer.load(served_folder)


@pytest.fixture(scope="module")
def reference(served_folder):
    return AutoModelForCausalLM.from_pretrained(served_folder).eval()


@torch.no_grad()
def logprobs_of(reference, prompt_ids, token_ids):
    """The log-probability of each of `token_ids` after the prompt by transformers, untempered."""
    logits = reference(torch.tensor([prompt_ids + token_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("reports_ids", [True, False], ids=["server's ids", "encoded"])
def test_tokens_and_logprobs_are_the_models(server, reference, tokenizer, reports_ids):
    server.start()
    source = {"extra": IDS} if reports_ids else {"tokenizer": tokenizer}
    made = OpenAIEngine(server.url, "tiny", **source).generate(PROMPTS, SAMPLED, samples=4)
    assert [len(row) for row in made] == [4, 4, 4]
    reasons = set()
    for prompt, row in zip(PROMPTS, made, strict=True):
        for one in row:
            expected = logprobs_of(reference, tokenizer.encode(prompt), one.token_ids)
            assert one.logprobs == pytest.approx(expected, abs=1e-4)
            ended = one.token_ids[-1] == tokenizer.eos_id
            assert one.text == tokenizer.decode(one.token_ids[:-1] if ended else one.token_ids)
            assert one.finish_reason == ("stop" if ended else "length")
            reasons.add(one.finish_reason)
    assert "length" in reasons
    assert len({tuple(one.token_ids) for one in made[0]}) > 1, "samples of a prompt must differ"


def test_greedy_is_the_argmax(server, reference, tokenizer):
    server.start()
    for prompt, [one] in zip(
        PROMPTS, OpenAIEngine(server.url, "tiny", tokenizer).generate(PROMPTS, GREEDY), strict=True
    ):
        ids = tokenizer.encode(prompt)
        for token in one.token_ids:
            with torch.no_grad():
                assert token == int(reference(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_a_seed_repeats_whatever_else_is_requested(server):
    server.start()
    engine = OpenAIEngine(server.url, "tiny", extra=IDS)
    first = engine.generate(PROMPTS, SAMPLED, samples=2)
    assert engine.generate(PROMPTS[::-1], SAMPLED, samples=2)[::-1] == first
    [one, two] = engine.generate(["ABC", "ABC"], SAMPLED)
    assert one == first[0][:1]
    assert two != one
    # With explicit seeds, the same seed gives the same completion twice.
    assert len({each[0].text for each in engine.generate(["ABC"] * 3, SAMPLED, seeds=[4, 4, 5])}) == 2
    assert engine.generate(["ABC"], SamplingParams(8, 0.9, 0.9, seed=5), samples=2) != first[:1]
    # A missing sample alone; equal requests are sent once, and kept at every place.
    kept = {}
    [[second], [again]] = engine.generate(
        ["ABC", "ABC"],
        SAMPLED,
        seeds=[prompt_seeds(SAMPLED.seed, ["ABC"])[0]] * 2,
        numbers=[[1], [1]],
        keep=lambda index, number, completion: kept.update({(index, number): completion}),
    )
    assert second == again == first[0][1] != first[0][0]
    assert kept == {(0, 1): second, (1, 1): again}
    assert 0 < second.seconds < 60


def test_requests_are_standard_and_carry_the_key(server, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret\n")
    params = SamplingParams(max_new_tokens=3, temperature=0.5, top_p=0.25, stop=["!"], seed=1)
    OpenAIEngine(server.start().url, "tiny", extra=IDS, api_key_variable="TINY_KEY").generate(["A"], params)
    [request] = server.requests
    assert request["path"] == "/v1/completions"
    assert request["headers"]["Authorization"] == "Bearer secret"
    seed = request["body"].pop("seed")
    assert 0 <= seed < 2**31
    assert request["body"] == {
        "model": "tiny",
        "prompt": "A",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.25,
        "stop": ["!"],
        "logprobs": 1,
        "return_token_ids": True,
    }


@pytest.mark.parametrize("keep_stop", [True, False])
def test_stop_strings_are_not_in_the_text(server, tokenizer, keep_stop):
    whole = OpenAIEngine(server.start().url, "tiny", extra=IDS).generate(["ABC"], GREEDY)[0][0]
    server.kill()
    stop = whole.text[3:5]
    cut = whole.text[: whole.text.index(stop)]
    server.start(keep_stop=keep_stop)
    params = SamplingParams(max_new_tokens=8, temperature=0, stop=[stop, "never"])
    [[one]] = OpenAIEngine(server.url, "tiny", extra=IDS).generate(["ABC"], params)
    assert (one.text, one.finish_reason) == (cut, "stop")
    assert tokenizer.decode(one.token_ids) == cut + stop
    assert len(one.logprobs) == len(one.token_ids)


def test_prompts_are_sent_as_the_ids_of_the_policy(server, reference, served_folder):
    """Here the tokenizer's files add nothing; "!" stands for the start token of a model that has one."""
    begun = Tokenizer.load(served_folder, TextSettings(begin="!"))
    server.start()
    made = OpenAIEngine(server.url, "tiny", begun, extra=IDS).generate(PROMPTS, GREEDY)
    for request, prompt in zip(server.requests, PROMPTS, strict=True):
        assert request["body"]["prompt"] in [begun.encode(each) for each in PROMPTS]
        assert begun.encode(prompt)[0] == begun.encode_fragment("!")[0]
    for prompt, [one] in zip(PROMPTS, made, strict=True):
        ids = torch.tensor([begun.encode(prompt)])
        expected = reference.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :].tolist()
        assert one.token_ids == expected
    # Negative control: the start token matters to this model.
    bare = Tokenizer.load(served_folder)
    assert OpenAIEngine(server.url, "tiny", bare, extra=IDS).generate(PROMPTS, GREEDY) != made


def test_a_server_that_adds_a_start_token_is_detected(server, served_folder):
    begun, bare = (Tokenizer.load(served_folder, TextSettings(begin=name)) for name in ("!", "none"))
    start = begun.encode("")
    server.start(begin=start)
    for tokenizer, prompts in ((begun, "auto"), (bare, "auto"), (bare, "ids")):
        with pytest.raises(
            ServerError, match=r"read a prompt of \d tokens, but was sent \d ids, so it adds tokens"
        ):
            OpenAIEngine(server.url, "tiny", tokenizer, extra=IDS, prompts=prompts).generate(["A"], GREEDY)
    with pytest.raises(
        ServerError, match="2 tokens from a text that has 1 tokens here: it uses a different start token"
    ):
        OpenAIEngine(server.url, "tiny", bare, extra=IDS, prompts="text").generate(["A"], GREEDY)
    # With text prompts, the server adds the same start token as the policy, so the prompt is correct.
    from_text = OpenAIEngine(server.url, "tiny", begun, extra=IDS, prompts="text").generate(["A"], GREEDY)
    server.kill()
    server.start()
    assert OpenAIEngine(server.url, "tiny", begun, extra=IDS).generate(["A"], GREEDY) == from_text


def test_a_server_that_accepts_only_text(server, served_folder, caplog):
    begun, bare = (Tokenizer.load(served_folder, TextSettings(begin=name)) for name in ("!", "none"))
    server.start(text_only=True)
    engine = OpenAIEngine(server.url, "tiny", bare, extra=IDS)
    made = engine.generate(PROMPTS, GREEDY)
    assert engine.generate(["ABC"], GREEDY) == made[:1]
    [line] = caplog.messages
    assert "the server refused token ids (400 Bad Request: prompt must be a string" in line
    assert [type(request["body"]["prompt"]) for request in server.requests] == [list, str, str, str, str]
    with pytest.raises(ServerError, match="1 tokens from a text that has 2 tokens here"):
        OpenAIEngine(server.url, "tiny", begun, extra=IDS).generate(["A"], GREEDY)
    with pytest.raises(ServerError, match="prompt must be a string"):
        OpenAIEngine(server.url, "tiny", bare, prompts="ids").generate(["A"], GREEDY)
    # A server that reports no count cannot be checked (docs/engines.md).
    server.kill()
    server.start(text_only=True, silent=True)
    OpenAIEngine(server.url, "tiny", begun, extra=IDS).generate(["A"], GREEDY)
