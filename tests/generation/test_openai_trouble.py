"""Servers that are busy, refuse, die or send an invalid response: which requests are repeated or kept."""

from __future__ import annotations

import time
from threading import Thread

import pytest

from megatron_prism.errors import ConfigError, DataError, ServerError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.openai_engine import OpenAIEngine

PROMPTS = ["ABC", "hello", "x"]
SAMPLED = SamplingParams(max_new_tokens=8, temperature=0.9, top_p=0.9, seed=4)
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)
IDS = {"return_token_ids": True}
# Short waits: a test must not take long.
HASTY = {"first_wait": 0.05, "retries": 2}


@pytest.mark.parametrize(
    "trouble",
    [{"refuse": 2}, {"refuse": 2, "status": 503}, {"drop": 2}],
    ids=["429", "503", "dropped connection"],
)
def test_temporary_errors_are_retried(server, trouble):
    engine = OpenAIEngine(server.start(**trouble).url, "tiny", extra=IDS, concurrency=1, **HASTY)
    seen = []
    started = time.monotonic()
    assert len(engine.generate(["A", "B"], GREEDY, progress=seen.append)) == 2
    assert time.monotonic() - started >= 0.05 + 0.1, "waits grow"
    assert seen == [1, 1]
    assert server.bodies[0] == server.bodies[1] == server.bodies[2] != server.bodies[3]
    assert len(server.bodies) == 4


def test_permanent_errors_are_one_line(server):
    engine = OpenAIEngine(server.start(refuse=3).url, "tiny", extra=IDS, **HASTY)
    with pytest.raises(ServerError) as stop:
        engine.generate(["A"], GREEDY)
    assert str(stop.value) == (
        f"{server.url}/completions: 429 Too Many Requests: come back later (tries: 3, over 0.2 s of waiting); "
        "check that the server runs, or raise retries=2; 0 of 1 completions were finished and are lost; "
        "set store=FOLDER to keep them"
    )


def test_retry_after_is_respected(server):
    engine = OpenAIEngine(server.start(refuse=1, retry_after="1").url, "tiny", extra=IDS, first_wait=0.01)
    started = time.monotonic()
    engine.generate(["A"], GREEDY)
    assert time.monotonic() - started >= 1


def test_a_web_page_is_not_a_response(server):
    engine = OpenAIEngine(server.start(page=True).url, "tiny", extra=IDS, **HASTY)
    with pytest.raises(ServerError, match=r"not JSON \('<html>Sign in</html>'\); check the address"):
        engine.generate(["A"], GREEDY)
    assert len(server.bodies) == 1


def test_other_error_statuses_are_final(server):
    engine = OpenAIEngine(server.start().url, "tiny", extra=IDS, **HASTY)
    with pytest.raises(
        ServerError, match="400 Bad Request: This model's maximum context length is 128 tokens;"
    ):
        engine.generate(["A"], SamplingParams(max_new_tokens=500))
    assert len(server.bodies) == 1


def test_a_server_that_dies_and_comes_back(server):
    """The server is killed during requests; another process restarts it while the engine waits."""
    undisturbed = OpenAIEngine(server.start().url, "tiny", extra=IDS).generate(PROMPTS, SAMPLED, samples=4)
    server.kill()
    before = len(server.bodies)
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
    bodies = server.bodies[before:]
    assert len(set(bodies)) == 12
    assert 13 <= len(bodies) <= 15, "only requests that were running when the server died are repeated"


def test_a_server_that_does_not_return_loses_nothing(server, tmp_path):
    store = tmp_path / "kept"
    engine = OpenAIEngine(server.start(die_at=6).url, "tiny", extra=IDS, concurrency=2, store=store, **HASTY)
    seen = []
    with pytest.raises(ServerError, match=rf"{server.url}/completions: no response \(.*tries: 3") as stop:
        engine.generate(PROMPTS, SAMPLED, samples=4, progress=seen.append)
    kept = (store / "completions.jsonl").read_text().splitlines()
    assert f"{len(kept)} of 12 completions are kept in {store / 'completions.jsonl'}; run again" in str(
        stop.value
    )
    assert "\n" not in str(stop.value)
    assert sum(seen) == len(kept)
    assert len(kept) in (4, 5), "the sixth request killed it, and one more may have been running"

    # As if the disk had been full when the last line was written: its completion is requested again.
    (store / "completions.jsonl").write_text("\n".join(kept)[:-20])
    before = len(server.bodies)
    server.start()
    again = OpenAIEngine(server.url, "tiny", extra=IDS, store=store)
    seen = []
    made = again.generate(PROMPTS, SAMPLED, samples=4, progress=seen.append)
    assert seen[0] == len(kept) - 1
    assert sum(seen) == 12
    assert len(server.bodies) - before == 12 - seen[0]
    assert made == OpenAIEngine(server.url, "tiny", extra=IDS).generate(PROMPTS, SAMPLED, samples=4)

    # All completions are stored now, so nothing is requested. Other parameters need new completions.
    before = len(server.bodies)
    assert again.generate(PROMPTS, SAMPLED, samples=4) == made
    assert len(server.bodies) == before
    again.generate(["ABC"], GREEDY)
    assert len(server.bodies) == before + 1


def test_bad_arguments(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    for arguments, message in [
        ({"base_url": "localhost:8000/v1"}, r"localhost:8000/v1/completions: not an http\(s\) address"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"retries": -1}, "retries=-1"),
        ({"prompts": "id"}, "prompts='id' is not possible; did you mean 'ids'"),
        ({"prompts": "ids"}, "prompts='ids': needs a tokenizer"),
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
    with pytest.raises(DataError, match=r"completions.jsonl:1: not a stored completion"):
        OpenAIEngine("http://localhost:1/v1", "tiny", store=tmp_path).generate(["A"], GREEDY)
