"""OpenAIEngine against the server of transformers, which shares no code with this repository's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from served_model import wait_for_port
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_accelerate_available, is_serve_available

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ServerError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.openai_engine import OpenAIEngine
from megatron_prism.platform.ports import free_port

PROMPTS = ["ABC", "hello", "x"]
SAMPLED = SamplingParams(max_new_tokens=8, temperature=0.9, top_p=0.9, seed=4)
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


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
def test_transformers_serve(served_folder):
    """This server reports no log-probabilities and no token ids, and leaves the stop string in the text."""
    tokenizer = Tokenizer.load(served_folder)
    reference = AutoModelForCausalLM.from_pretrained(served_folder).eval()
    model = str(served_folder)
    with transformers_serve(served_folder) as url:
        with pytest.raises(ServerError, match=r"no log-probabilities .*logprobs=False"):
            OpenAIEngine(url, model, tokenizer).generate(["ABC"], GREEDY)

        engine = OpenAIEngine(url, model, tokenizer, logprobs=False)
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
        alone = OpenAIEngine(url, model, tokenizer, logprobs=False, concurrency=1)
        made = alone.generate(PROMPTS, SAMPLED, samples=2)
        assert alone.generate(PROMPTS, SAMPLED, samples=2) == made
        assert made[0][0] != made[0][1]

        with pytest.raises(ServerError, match="400 Bad Request: Server is pinned to"):
            OpenAIEngine(url, "another", tokenizer, logprobs=False).generate(["ABC"], GREEDY)
