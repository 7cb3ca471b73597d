"""The `rl` stage on an engine that must be given the weights: the gate shows whether it has them.

The engine is ours, what is below it a stand-in (tests/stand_in_vllm.py).
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import stand_in_vllm
import torch
from tiny_rl import MODELS, VOCABULARY, artifact, make_inputs, make_model, tiny_run

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import END_OF_TEXT
from megatron_prism.errors import ConfigError, ServerError
from megatron_prism.generation.engine_config import EXPORTED, EngineConfig
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.gate import GateSettings, GateStop
from megatron_prism.rl.record import read_metrics

SIZES = {kind: replace(architecture, vocab_size=VOCABULARY) for kind, architecture in MODELS.items()}
# Large steps: a step's weights are clearly not those of the step before.
GATE = GateSettings(action="stop", mean_ratio=1.001, worst_log_ratio=1e-3)


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm)
    monkeypatch.setattr(stand_in_vllm.LLM, "made", [])
    return stand_in_vllm.LLM


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Models without rows beyond the tokenizer's: vLLM would sample them."""
    given = {}
    for kind in MODELS:
        folder = tmp_path_factory.mktemp(kind)
        given[kind] = make_inputs(folder, kind)
        make_model(folder / "exact", SIZES[kind])
        given[kind]["model"] = artifact(folder / "exact")
    return given


def stage(kind, **changes):
    return tiny_run(kind, architecture=SIZES[kind], engine=EngineConfig("vllm"), gate=GATE, **changes)


@pytest.mark.parametrize("kind", MODELS)
def test_each_step_samples_from_the_newest_weights(kind, vllm, inputs, tmp_path):
    metrics = stage(kind).run(inputs[kind], tmp_path)
    [engine] = vllm.made
    assert (metrics["steps"], engine.updates) == (3, 3)
    steps = read_metrics(tmp_path)
    assert len(steps) == 3
    assert all(line["gap"]["max_abs"] < 1e-4 and line["grad_norm"] > 0 for line in steps)
    assert not (tmp_path / EXPORTED).exists()


def test_weights_that_do_not_arrive_stop_the_run(vllm, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "deaf", True)
    with pytest.raises(GateStop, match="step 2"):
        stage("dense").run(inputs["dense"], tmp_path)


def test_a_resumed_run_starts_the_engine_at_its_own_weights(vllm, inputs, tmp_path, monkeypatch):
    from megatron_prism.rl import record

    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    out.mkdir()
    again = stage("dense", checkpoint_every=1)
    again.run(inputs["dense"], whole)
    honest = record.RLLog.step

    def stopping(self, step, *arguments):
        if step == 3:
            raise KeyboardInterrupt
        honest(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(record.RLLog, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            again.run(inputs["dense"], out)
    again.run(inputs["dense"], out)
    last = [torch.load(folder / "checkpoint" / "common.pt", weights_only=False) for folder in (whole, out)]
    assert last[0].keys() == last[1].keys()
    without_times = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(f)] for f in (whole, out)
    ]
    assert without_times[0] == without_times[1]


def test_engines_that_cannot_train(inputs):
    server = {"base_url": "http://localhost:1/v1", "model": "m"}
    for engine in (EngineConfig("openai", server), EngineConfig("hf")):
        with pytest.raises(ConfigError, match=rf"engine\.name={engine.name}: it takes no new weights"):
            tiny_run("dense", engine=engine)
    with pytest.raises(ConfigError, match=r"engine\.name=vllm: it samples in the process that trains"):
        tiny_run(
            "dense",
            engine=EngineConfig("vllm"),
            parallel=ParallelConfig(tensor_model_parallel_size=2),
        )


def test_prompts_begin_alike_in_sampler_and_trainer(vllm, inputs, tmp_path, monkeypatch):
    """The log-probabilities would differ if only one of them put the start token before the prompt."""
    begun = EngineConfig("vllm", text=TextSettings(begin=END_OF_TEXT))
    metrics = replace(stage("dense", steps=2), engine=begun).run(inputs["dense"], tmp_path)
    assert metrics["text"]["begin"] == [END_OF_TEXT]
    assert all(line["gap"]["max_abs"] < 1e-4 for line in read_metrics(tmp_path))
    # A sampler that adds its own start token is detected before the first update.
    monkeypatch.setattr(vllm, "begin", (0,))
    out = tmp_path / "other"
    out.mkdir()
    with pytest.raises(ServerError, match="so this version of vLLM changes prompts"):
        stage("dense").run(inputs["dense"], out)
