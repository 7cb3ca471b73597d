"""OpenAIEngine against servers that really sample: a small one that can be killed, and transformers' own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import torch
from tiny_models import make_checkpoint
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_accelerate_available, is_serve_available

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError, ServerError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.openai import OpenAIEngine

LETTERS = 94
SERVER = Path(__file__).with_name("completions_server.py")
PROMPTS = ["ABC", "hello", "x"]
SAMPLED = SamplingParams(max_new_tokens=8, temperature=0.9, top_p=0.9, seed=4)
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)
IDS = {"return_token_ids": True}
# Short waits: a test must not take long.
HASTY = {"first_wait": 0.05, "retries": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama whose tokens are the printable characters; it may sample by its own generation config."""
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("model"), vocab_size=LETTERS + 2)
    known = {"<|endoftext|>": 0, "<|pad|>": 1} | {chr(33 + index): 2 + index for index in range(LETTERS)}
    raw = Tokenizers(models.WordLevel(known, unk_token="<|pad|>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|pad|>"
    ).save_pretrained(folder)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_sample": True}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def supervisor(folder):
    """The process that has the model and forks servers."""
    command = [sys.executable, str(SERVER), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as process:
        yield process
        process.stdin.close()


class Server:
    """A server on a port of its own, started and killed at will."""

    def __init__(self, supervisor, folder):
        self.supervisor = supervisor
        self.port = free_port()
        self.log = folder / "requests.jsonl"
        self.log.touch()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process = 0

    def start(self, **options):
        self.supervisor.stdin.write(json.dumps({"port": self.port, "log": str(self.log), **options}) + "\n")
        self.supervisor.stdin.flush()
        self.process = int(self.supervisor.stdout.readline())
        wait_for_port(self.port)
        return self

    @property
    def alive(self):
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self):
        """Return when the process is gone, and its port with it."""
        while self.process and self.alive:
            os.kill(self.process, signal.SIGKILL)
            time.sleep(0.01)

    @property
    def requests(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def asked(self):
        """What each request asked for; equal requests ask for the same completion."""
        return [json.dumps(request["body"], sort_keys=True) for request in self.requests]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "the server ended before it listened"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"no server on port {port} after {seconds} s")


@pytest.fixture
def server(supervisor, tmp_path):
    made = Server(supervisor, tmp_path)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logprobs_of(reference, prompt_ids, token_ids):
    """What transformers gives each of `token_ids` after the prompt, untempered."""
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


def test_a_seed_repeats_whatever_else_is_asked(server):
    server.start()
    engine = OpenAIEngine(server.url, "tiny", extra=IDS)
    first = engine.generate(PROMPTS, SAMPLED, samples=2)
    assert engine.generate(PROMPTS[::-1], SAMPLED, samples=2)[::-1] == first
    # A prompt given twice goes on counting.
    [one, two] = engine.generate(["ABC", "ABC"], SAMPLED)
    assert [*one, *two] == first[0]
    assert engine.generate(["ABC"], SamplingParams(8, 0.9, 0.9, seed=5), samples=2) != first[:1]


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


@pytest.mark.parametrize(
    "trouble",
    [{"refuse": 2}, {"refuse": 2, "status": 503}, {"drop": 2}],
    ids=["429", "503", "dropped connection"],
)
def test_passing_trouble_is_tried_again(server, trouble):
    engine = OpenAIEngine(server.start(**trouble).url, "tiny", extra=IDS, concurrency=1, **HASTY)
    seen = []
    started = time.monotonic()
    assert len(engine.generate(["A", "B"], GREEDY, progress=seen.append)) == 2
    assert time.monotonic() - started >= 0.05 + 0.1, "waits grow"
    assert seen == [1, 1]
    assert server.asked[0] == server.asked[1] == server.asked[2] != server.asked[3]
    assert len(server.asked) == 4


def test_trouble_that_stays_ends_in_one_line(server):
    engine = OpenAIEngine(server.start(refuse=3).url, "tiny", extra=IDS, **HASTY)
    with pytest.raises(ServerError) as stop:
        engine.generate(["A"], GREEDY)
    assert str(stop.value) == (
        f"{server.url}/completions: 429 Too Many Requests: come back later (tries: 3, over 0.2 s of waiting); "
        "see that the server runs, or raise retries=2; 0 of 1 completions were finished and are lost, "
        "store=FOLDER would keep them"
    )


def test_the_servers_own_wait_is_obeyed(server):
    engine = OpenAIEngine(server.start(refuse=1, retry_after="1").url, "tiny", extra=IDS, first_wait=0.01)
    started = time.monotonic()
    engine.generate(["A"], GREEDY)
    assert time.monotonic() - started >= 1


def test_a_page_is_not_an_answer(server):
    engine = OpenAIEngine(server.start(page=True).url, "tiny", extra=IDS, **HASTY)
    with pytest.raises(ServerError, match=r"not JSON \('<html>Sign in</html>'\); is the address right"):
        engine.generate(["A"], GREEDY)
    assert len(server.asked) == 1


def test_another_refusal_is_final(server):
    engine = OpenAIEngine(server.start().url, "tiny", extra=IDS, **HASTY)
    with pytest.raises(
        ServerError, match="400 Bad Request: This model's maximum context length is 128 tokens;"
    ):
        engine.generate(["A"], SamplingParams(max_new_tokens=500))
    assert len(server.asked) == 1


def test_a_server_that_dies_and_comes_back(server, tmp_path):
    """Killed with requests under way; another process starts it again while the engine waits."""
    undisturbed = OpenAIEngine(server.start().url, "tiny", extra=IDS).generate(PROMPTS, SAMPLED, samples=4)
    server.kill()
    before = len(server.asked)
    server.start(die_at=6)

    def restart():
        while server.alive:
            time.sleep(0.02)
        time.sleep(0.2)
        server.start()

    helper = Thread(target=restart)
    helper.start()
    engine = OpenAIEngine(server.url, "tiny", extra=IDS, concurrency=3, first_wait=0.1, retries=6)
    seen = []
    assert engine.generate(PROMPTS, SAMPLED, samples=4, progress=seen.append) == undisturbed
    helper.join()
    assert sum(seen) == 12
    asked = server.asked[before:]
    assert len(set(asked)) == 12
    assert 13 <= len(asked) <= 15, "only the requests under way when it died are asked again"


def test_a_server_that_stays_away_loses_nothing(server, tmp_path):
    store = tmp_path / "kept"
    engine = OpenAIEngine(server.start(die_at=6).url, "tiny", extra=IDS, concurrency=2, store=store, **HASTY)
    seen = []
    with pytest.raises(ServerError, match=rf"{server.url}/completions: no answer \(.*tries: 3") as stop:
        engine.generate(PROMPTS, SAMPLED, samples=4, progress=seen.append)
    kept = (store / "completions.jsonl").read_text().splitlines()
    assert f"{len(kept)} of 12 completions are kept in {store / 'completions.jsonl'}, run again" in str(
        stop.value
    )
    assert "\n" not in str(stop.value)
    assert sum(seen) == len(kept) == 4

    # As if the disk had been full when the last line was written: it is asked for again.
    (store / "completions.jsonl").write_text("\n".join(kept)[:-20])
    before = len(server.asked)
    server.start()
    again = OpenAIEngine(server.url, "tiny", extra=IDS, store=store)
    seen = []
    made = again.generate(PROMPTS, SAMPLED, samples=4, progress=seen.append)
    assert seen[0] == 3
    assert sum(seen) == 12
    assert len(server.asked) - before == 12 - 3
    assert made == OpenAIEngine(server.url, "tiny", extra=IDS).generate(PROMPTS, SAMPLED, samples=4)

    # All is kept now: no request at all. Other parameters are another question.
    before = len(server.asked)
    assert again.generate(PROMPTS, SAMPLED, samples=4) == made
    assert len(server.asked) == before
    again.generate(["ABC"], GREEDY)
    assert len(server.asked) == before + 1


def test_bad_arguments(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    for arguments, message in [
        ({"base_url": "localhost:8000/v1"}, r"localhost:8000/v1/completions: not an http\(s\) address"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0"),
        ({"extra": {"seed": 1}}, "extra.seed: the engine sets this field itself"),
        ({"api_key_variable": "NO_KEY"}, "NO_KEY: this environment variable is not set"),
        ({"store": __file__}, "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=message):
            OpenAIEngine(**{"base_url": "http://localhost:1/v1", "model": "tiny", **arguments})
    with pytest.raises(DataError, match="no tokens"):
        OpenAIEngine("http://localhost:1/v1", "tiny").generate([""], GREEDY)
    (tmp_path / "completions.jsonl").write_text('{"score": 1}\n')
    with pytest.raises(DataError, match=r"completions.jsonl:1: not a kept completion"):
        OpenAIEngine("http://localhost:1/v1", "tiny", store=tmp_path).generate(["A"], GREEDY)


@contextmanager
def transformers_serve(folder):
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@pytest.mark.skipif(
    not (is_serve_available() and is_accelerate_available()),
    reason="transformers serve needs the packages openai and accelerate",
)
def test_transformers_serve(folder, reference, tokenizer):
    """The real thing: no log-probabilities, no token ids, and the stop string stays in its text."""
    with transformers_serve(folder) as url:
        with pytest.raises(ServerError, match=r"no log-probabilities .*logprobs=False"):
            OpenAIEngine(url, str(folder), tokenizer).generate(["ABC"], GREEDY)

        engine = OpenAIEngine(url, str(folder), tokenizer, logprobs=False)
        texts = []
        for prompt, [one] in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
            ids = torch.tensor([tokenizer.encode(prompt)])
            expected = reference.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :].tolist()
            assert one.token_ids == [token for token in expected if token != tokenizer.eos_id]
            assert one.logprobs == []
            texts.append(one.text)
        stop = texts[0][3:5]
        [[cut]] = engine.generate(["ABC"], SamplingParams(max_new_tokens=8, temperature=0, stop=[stop]))
        assert (cut.text, cut.finish_reason) == (texts[0][: texts[0].index(stop)], "stop")

        # It seeds one generator for all requests, so only one at a time repeats.
        alone = OpenAIEngine(url, str(folder), tokenizer, logprobs=False, concurrency=1)
        made = alone.generate(PROMPTS, SAMPLED, samples=2)
        assert alone.generate(PROMPTS, SAMPLED, samples=2) == made
        assert made[0][0] != made[0][1]

        with pytest.raises(ServerError, match="400 Bad Request: Server is pinned to"):
            OpenAIEngine(url, "another", tokenizer, logprobs=False).generate(["ABC"], GREEDY)
