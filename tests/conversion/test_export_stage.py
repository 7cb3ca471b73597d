from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from megatron_prism.conversion import stage as export_stage
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models import granite
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import model_state, write_checkpoint
from megatron_prism.pipeline.artifact import Artifact, Receipt, seal
from megatron_prism.platform.process_groups import cuda_requests_on_cpu, session

ARCHITECTURE = Architecture(
    family="granite",
    vocab_size=40,
    hidden_size=32,
    num_layers=2,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=8,
    max_position_embeddings=32,
    attention_multiplier=0.2,
    embedding_multiplier=6.0,
    residual_multiplier=0.4,
    logits_scaling=8.0,
)


def sealed(folder, kind):
    return seal(folder, folder.with_name(kind), Receipt(kind, "f", kind, {}, {}))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("artifacts")
    tokens, trained = root / "tokenizer.partial", root / "train.partial"
    tokens.mkdir()
    (trained / "checkpoint").mkdir(parents=True)
    raw = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(tokens)
    ARCHITECTURE.save(trained / "architecture.json")
    with session(seed=7):
        model = build_model(ARCHITECTURE)
        with cuda_requests_on_cpu():
            write_checkpoint(model_state([model]), trained / "checkpoint")
        weight = model.embedding.word_embeddings.weight.detach().clone()
    return {"model": sealed(trained, "train"), "tokenizer": sealed(tokens, "tokenizer")}, weight


def test_exports_the_trained_weights_and_measures(inputs, tmp_path):
    artifacts, weight = inputs
    metrics = export_stage.ExportHF().run(artifacts, tmp_path)
    assert metrics["max_abs_logit_difference"] < 1e-4
    assert metrics["top1_agreement"] == 1.0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(model.model.embed_tokens.weight, weight)
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["bytes"] > 4 * metrics["parameters"]
    json.dumps(metrics)


def test_a_model_that_computes_something_else_is_refused(inputs, tmp_path, monkeypatch):
    def forget_attention_multiplier(architecture):
        return right(architecture) | {"attention_multiplier": 1.0}

    right = granite.to_config
    from megatron_prism.models.families import FAMILIES, Family

    wrong = Family(granite.rules, forget_attention_multiplier, granite.from_config)
    monkeypatch.setitem(FAMILIES, "granite", wrong)
    with pytest.raises(CheckpointError, match="logits differ"):
        export_stage.ExportHF().run(inputs[0], tmp_path)


def test_a_missing_checkpoint_and_a_bad_tolerance_are_named(inputs, tmp_path):
    empty = tmp_path / "train.partial"
    (empty / "checkpoint").mkdir(parents=True)
    ARCHITECTURE.save(empty / "architecture.json")
    artifacts: dict[str, Artifact] = inputs[0] | {"model": sealed(empty, "train")}
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export_stage.ExportHF().run(artifacts, tmp_path)
    with pytest.raises(ConfigError, match="tolerance"):
        export_stage.ExportHF(tolerance=0.0)
