"""Engines by name, and the parts of the vLLM engine that need no GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import SamplingParams, cut_at_stop, prompt_seeds, sample_seed
from megatron_prism.generation.open_engine import open_engine
from megatron_prism.generation.openai_engine import OpenAIEngine
from megatron_prism.generation.vllm_engine import VLLMEngine, sampling_arguments


def test_open_by_name():
    with open_engine("openai", base_url="http://localhost:1/v1/", model="tiny", retries=0) as engine:
        assert isinstance(engine, OpenAIEngine)
        assert engine.endpoint.url == "http://localhost:1/v1/completions"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openia", {}, "engine 'openia' does not exist; did you mean 'openai'"),
        ("sglang", {}, "engine 'sglang' does not exist; known: hf, megatron, openai, vllm"),
        (
            "openai",
            {"base-url": "http://localhost:1/v1"},
            "unknown option 'base-url'; did you mean 'base_url'",
        ),
        ("openai", {"model": "tiny"}, "option 'base_url' is missing"),
        ("megatron", {"batch": 3}, "unknown option 'batch'; did you mean 'batch_size'"),
        ("megatron", {}, "option 'model_folder' is missing"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with pytest.raises(ConfigError, match=message), open_engine(name, **options):
        pass


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm(tmp_path):
    with pytest.raises(
        ConfigError, match=r"pip install 'megatron-prism\[vllm\]'.* engine 'megatron'"
    ) as refusal:
        VLLMEngine(tmp_path)
    assert "\n" not in str(refusal.value)


def test_vllm_sampling_arguments():
    params = SamplingParams(max_new_tokens=7, temperature=0.5, top_p=0.25, stop=["!"])
    assert sampling_arguments(params, seed=11, end_id=3) == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "stop": ["!"],
        "stop_token_ids": [3],
        "seed": 11,
        "logprobs": 0,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }
    assert sampling_arguments(SamplingParams(), 1, 3)["stop"] == []


def test_every_completion_has_its_own_seed():
    seeds = [
        sample_seed(prompt_seed, number)
        for seed in range(3)
        for prompt_seed in prompt_seeds(seed, ["a", "b", "a"])
        for number in range(3)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    # The other prompts of a call do not matter; a second occurrence of the same prompt does.
    assert prompt_seeds(1, ["b", "a", "a"])[1:] == prompt_seeds(1, ["a", "c", "a"])[::2]


def test_the_first_stop_string_cuts():
    assert cut_at_stop("one. two! three", ["!", "."]) == "one"
    assert cut_at_stop("one", ["!"]) == "one"
    assert cut_at_stop("one", None) == "one"
