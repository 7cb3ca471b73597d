"""The server of transformers, which shares no code with this repository's tests, with an exported model.

The model has the family of the shoebox. OpenAIEngine samples from it, and a whole evaluation gives the answers and the
score of engine 'megatron'.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from kept_answers import InThisProcess
from safetensors.torch import load_file, save_file
from served_model import wait_for_port
from tiny_models import make_checkpoint
from tiny_rl import artifact
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_accelerate_available, is_serve_available

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.weights import open_weights
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import PrismError, ServerError
from megatron_prism.evaluation.answers import read_answers
from megatron_prism.evaluation.given_model import add_model
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.openai_engine import OpenAIEngine
from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.ports import free_port
from megatron_prism.verification.settings import GradingSettings

PROMPTS = ["ABC", "hello", "x"]
CHAIN = "C\\boxed{A}"
SAMPLED = SamplingParams(max_new_tokens=8, temperature=0.9, top_p=0.9, seed=4)
GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def folders(served_folder, tmp_path_factory):
    """A Granite with one token per character that has learned one answer: (Megatron folder, its export)."""
    root = tmp_path_factory.mktemp("granite")
    # A tiny tied model with an embedding multiplier would repeat one token.
    made = make_checkpoint("granite", root / "made", vocab_size=96, tie_word_embeddings=False)
    # The server samples only if the generation config says so, whatever the temperature of a request.
    for file in (*served_folder.glob("tokenizer*"), served_folder / "generation_config.json"):
        shutil.copyfile(file, made / file.name)
    teach(made / "model.safetensors", made / "tokenizer.json")
    megatron, exported = root / "megatron", root / "exported"
    megatron.mkdir()
    exported.mkdir()
    import_checkpoint(made, megatron)
    export_checkpoint(open_weights(megatron), exported)
    return megatron, exported


def teach(weights, tokenizer):
    """Make each character of CHAIN the most probable one after that before it."""
    ids = json.loads(tokenizer.read_text())["model"]["vocab"]
    tensors = load_file(weights)
    head, embedding = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    for before, after in zip(CHAIN, (*CHAIN[1:], "<|endoftext|>"), strict=True):
        row = embedding[ids[before]]
        head[ids[after]] = 4 * row / row.norm()
    save_file(tensors, weights, {"format": "pt"})


@contextmanager
def transformers_serve(folder, cache):
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)},
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
def test_transformers_serve(folders, tmp_path, monkeypatch):
    """This server reports no log-probabilities and no token ids, and leaves the stop string in the text."""
    megatron, exported = folders
    tokenizer = Tokenizer.load(exported)
    reference = AutoModelForCausalLM.from_pretrained(exported).eval()
    model = str(exported)
    with transformers_serve(exported, tmp_path / "cache") as url:
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

        monkeypatch.setattr(GradingSettings, "open_pool", lambda self: nullcontext(InThisProcess()))
        evaluated_alike(megatron, exported, url, tmp_path)


def evaluated_alike(megatron, exported, url, folder):
    """The whole evaluation: prompts, answers and score are those of the model in this process."""
    # It lists the models of its cache, here none, and not the one that it serves.
    with pytest.raises(PrismError, match=r"name the model with --option model=NAME"):
        add_model(Graph("served"), url, tokenizer=str(exported))
    options = {"model": str(exported), "logprobs": False}
    served, here = Graph("served"), Graph("here")
    *_, local = add_model(here, str(megatron))
    *_, remote = add_model(served, url, tokenizer=str(exported), options=options)
    inputs = {"here": here.run(folder / "here"), "served": served.run(folder / "served")}
    assert list(inputs["served"]) == ["tokenizer"]

    corpus = folder / "corpus"
    (corpus / "problems").mkdir(parents=True)
    with (corpus / "problems" / "letters.jsonl").open("w") as file:
        for prompt in PROMPTS:
            problem = {
                "id": prompt,
                "domain": "science",
                "prompt": prompt,
                "kind": "choice",
                "answer": "A",
                "tests": [],
            }
            file.write(json.dumps(problem) + "\n")
    scores, answers = {}, {}
    for name, engine in (("here", local), ("served", remote)):
        out = folder / name / "evaluation-0"
        out.mkdir()
        stage = Evaluate(engine=engine, sampling=SuiteSampling(max_new_tokens=12, temperature=0))
        scores[name] = stage.run(inputs[name] | {"corpus": artifact(corpus)}, out)["suites"]["letters"]
        answers[name] = list(read_answers(out))
    for key in ("prompt_ids", "prompt_id", "completion", "finish_reason", "extracted", "correct", "reason"):
        assert [each[key] for each in answers["here"]] == [each[key] for each in answers["served"]], key
    assert [each["correct"] for each in answers["here"]] == [True, False, False]
    for key in ("pass_rate", "low", "high", "outcomes"):
        assert scores["here"][key] == scores["served"][key]
