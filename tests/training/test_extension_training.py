"""Extending a context by training: the extended model that comes out, attention-only training, recomputation."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import attention_layouts as small
import pytest
import torch
import warm
from data_artifacts import make_artifact
from safetensors.torch import load_file
from tiny_models import VOCABULARY, make_checkpoint

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.logits import compare, folder_outputs
from megatron_prism.conversion.weights import MegatronWeights
from megatron_prism.errors import CheckpointError, ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.extension import ContextExtension
from megatron_prism.models.families import architecture_from_config
from megatron_prism.models.rope import RopeScaling
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training import metrics
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import BatchConfig

OLD, NEW = 32, 96
YARN = RopeScaling(rope_type="yarn", factor=3.0, original_max_position_embeddings=OLD)
ATTENTION = re.compile(r"\.(self_attn|mixer)\.[qkvo]_proj\.weight$")
ONE = ParallelConfig()


def train(architecture: Architecture, **changes) -> Train:
    fields = {
        "architecture": architecture,
        "mixture": "shoebox-base",
        "steps": 2,
        "batch": BatchConfig(NEW, 2, 2),
        "schedule": Schedule(lr=1e-2, style="exponential", warmup_steps=1, final_factor=0.0),
        "optimizer": OptimizerSettings(eps=1e-8),
        "validation_batches": 1,
    }
    return Train(**(fields | changes))


def start(name: str, folder: Path, **changes) -> tuple[Path, Architecture]:
    """A tiny Hugging Face model of the shoebox's vocabulary, with few positions."""
    hf = make_checkpoint(name, folder, vocab_size=700, max_position_embeddings=OLD, **changes)
    return hf, architecture_from_config(json.loads((hf / "config.json").read_text()))


def test_a_stage_extends_trains_and_exports(inputs, tmp_path):
    hf, architecture = start("llama", tmp_path / "hf")
    extension = ContextExtension(NEW, rope_scaling=YARN)
    said: list[str] = []
    with heard(said):
        made = make_artifact(
            train(architecture, init_from=str(hf), extension=extension, trainable="attention"),
            tmp_path / "trained",
            **inputs,
        )
    expected = replace(architecture, max_position_embeddings=NEW, rope_scaling=YARN)
    assert Architecture.load(made.path / "architecture.json") == expected
    line = next(each for each in said if each.startswith("extension: "))
    assert "max_position_embeddings 32 -> 96, rope_scaling None -> yarn(factor=3" in line
    # q, o: 32 x 32 each; k, v: 32 x 16 each; three layers.
    assert made.metrics["trainable_parameters"] == 3 * (2 * 32 * 32 + 2 * 32 * 16)
    assert made.metrics["trainable_parameters"] < made.metrics["parameters"]

    back = tmp_path / "back"
    back.mkdir()
    export_checkpoint(MegatronWeights(made.path), back)
    before, after = load_file(hf / "model.safetensors"), load_file(back / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != bool(ATTENTION.search(name)), name
    config = json.loads((back / "config.json").read_text())
    assert config["max_position_embeddings"] == NEW
    assert config["rope_parameters"] == {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 3.0, "original_max_position_embeddings": OLD,
    }  # fmt: skip
    tokens = torch.randint(VOCABULARY, (1, NEW), generator=torch.Generator().manual_seed(0))
    ours, theirs = (folder_outputs(folder, tokens, torch.float32) for folder in (made.path, back))
    compared = compare(ours, theirs, 1e-4)
    assert compared.max_abs_difference <= compared.allowed(1e-4)

    # Training can start from the result with its new architecture, but not with the old one.
    again = train(expected, init_from=str(made.path), steps=1)
    make_artifact(again, tmp_path / "again", **inputs)
    with pytest.raises(
        CheckpointError, match="the checkpoint has max_position_embeddings=96, this model has 32"
    ):
        train(architecture, init_from=str(made.path), extension=extension).run(inputs, tmp_path)


@contextmanager
def heard(said: list[str]):
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    before = metrics.logger.level
    metrics.logger.addHandler(handler)
    metrics.logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        metrics.logger.removeHandler(handler)
        metrics.logger.setLevel(before)


LLAMA = Architecture("llama", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=OLD)
MAMBA = Architecture(
    "nemotron_h", 700, 32, 2, 48, 4, 2, 8, activation="squared_relu", position_embedding="none",
    hybrid_pattern="M-", mamba_num_heads=4, mamba_head_dim=8, mamba_state_dim=8, max_position_embeddings=OLD,
    tie_word_embeddings=False,
)  # fmt: skip
LONG = BatchConfig(2 * NEW, 1, 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: train(LLAMA), "longer than architecture.max_position_embeddings=32; an `extension` increases it"),
        (
            lambda: train(LLAMA, batch=LONG, extension=ContextExtension(NEW, rope_theta=1e6)),
            "sequence_length=192 is longer than extension.max_position_embeddings=96",
        ),
        (lambda: train(LLAMA, extension=ContextExtension(NEW)), "cover 32 positions; set a rope_theta"),
        (lambda: train(LLAMA, extension=ContextExtension(16)), "max_position_embeddings=16: the model already has 32"),
        (
            lambda: train(MAMBA, extension=ContextExtension(NEW), trainable="attention"),
            "trainable=attention: hybrid_pattern=M- has no attention layer",
        ),
        (lambda: train(LLAMA, extension=ContextExtension(NEW, 1e6), trainable="mlp"), "trainable='mlp'"),
        (lambda: train(LLAMA, extension=ContextExtension(NEW, 1e6), recompute="some"), "recompute='some'"),
        (
            lambda: train(MAMBA, extension=ContextExtension(NEW), recompute="full", dtype="bf16", fp8="hybrid"),
            "recompute=full: not supported with fp8=hybrid for hybrid models",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_when_made(make: Callable[[], Train], named: str):
    with pytest.raises(ConfigError, match=re.escape(named)):
        make()


def test_what_cannot_be_trained_is_refused_before_work_begins(inputs, tmp_path):
    with pytest.raises(ConfigError, match="there is no model to extend"):
        train(LLAMA, extension=ContextExtension(NEW, 1e6)).run(inputs, tmp_path)
    plain = ParallelConfig(pipeline_model_parallel_size=2, use_distributed_optimizer=False)
    with pytest.raises(ParallelError, match="the pipeline stage with layers M- has no attention to train"):
        train(replace(MAMBA, num_layers=4, hybrid_pattern="M-*-"), batch=BatchConfig(OLD, 2, 2), parallel=plain,
              trainable="attention")  # fmt: skip


def test_settings_count_in_the_fingerprint_but_recomputation_does_not():
    def fingerprint(**changes) -> str:
        return train(LLAMA, extension=ContextExtension(NEW, 1e6), **changes).fingerprint({})

    assert fingerprint(recompute="full") == fingerprint()
    assert fingerprint(trainable="attention") != fingerprint()
    assert fingerprint() != train(LLAMA, extension=ContextExtension(NEW, 2e6)).fingerprint({})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each small model trained on one process, and the folder with their starts and checkpoints."""
    folder = tmp_path_factory.mktemp("attention")
    found = {}
    for kind in small.MODELS:
        small.save_start(kind, folder)
        found[kind] = small.train(folder, kind, small.Case(kind, {}, broken=True))
    return folder, found


@pytest.fixture(scope="module")
def spread(alone):
    """The results of both ranks, by case."""
    folder, _ = alone
    warm.ranks(small.main, folder, world=2)
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return {name: [rank[name] for rank in ranks] for name in small.CASES}


def projections_and_only_they_changed(found: dict) -> bool:
    wanted = {
        name: bool(re.search(r"self_attention\.linear_(qkv|proj)\.weight$", name))
        for name in found["changed"]
    }
    return found["changed"] == wanted


def close(found: list, expected: list, tolerance: float) -> bool:
    return all(
        pair == pytest.approx(other, rel=tolerance) for pair, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("kind", small.MODELS)
def test_attention_alone_is_trained(kind, alone):
    found = alone[1][kind]
    assert projections_and_only_they_changed(found)
    assert 0 < sum(found["changed"].values()) == found["in_optimizer"] < len(found["changed"])
    assert found["unbroken"][-1][0] < found["unbroken"][0][0]


@pytest.mark.parametrize("kind", small.MODELS)
def test_the_gradient_norm_is_that_of_what_is_trained(kind, alone):
    """The reference is plain autograd of the whole model, whose full gradient norm is far larger."""
    folder, results = alone
    with session(seed=5):
        run = small.trainer(small.MODELS[kind], ONE, trainable="all")
        small.load_weights(run.models, folder / f"{kind}-start")
        model = run.models[0].module
        loss = 0.0
        for index in range(small.BATCH):
            sample = {key: value[None] for key, value in small.Motifs(small.LENGTH)[index].items()}
            loss += model(sample["tokens"], sample["position_ids"], None, labels=sample["labels"]).mean()
        # `backward` would leave the gradients in the buffers of Megatron's DDP.
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss / small.BATCH, list(named.values()))
    norms = {name: gradient.norm() for name, gradient in zip(named, gradients, strict=True)}
    everything = float(torch.stack(list(norms.values())).norm())
    attention = float(
        torch.stack([norm for name, norm in norms.items() if ".self_attention." in name]).norm()
    )
    assert results[kind]["unbroken"][0][1] == pytest.approx(attention, rel=1e-4)
    assert everything > 2 * attention


@pytest.mark.parametrize("kind", small.MODELS)
def test_resuming_it_is_bit_exact(kind, alone):
    found = alone[1][kind]
    assert found["resumed"] == found["unbroken"][small.BROKEN_AFTER :]
    assert found["same_weights"]


@pytest.mark.parametrize("name", small.CASES)
def test_two_processes_train_the_same(name, alone, spread):
    case, expected = small.CASES[name], alone[1][small.CASES[name].kind]["unbroken"]
    for rank in spread[name]:
        assert projections_and_only_they_changed(rank)
        assert close(rank["unbroken"], expected, 2e-2 if "dtype" in case.settings else 2e-4)
        if case.broken:
            assert rank["resumed"] == rank["unbroken"][small.BROKEN_AFTER :]
            assert rank["same_weights"]
    assert sum(rank["in_optimizer"] for rank in spread[name]) > 0


def test_a_pipeline_stage_may_have_nothing_to_train(spread):
    first, second = spread["hybrid-pp2-idle-stage"]
    assert first["in_optimizer"] == 0 < second["in_optimizer"]
    assert not any(first["changed"].values())


@pytest.mark.parametrize("name", ["hybrid-pp2-idle-stage", "dense-pp2-tied", "dense-dp2"])
def test_its_checkpoint_loads_on_one_process(name, alone, spread):
    folder, results = alone
    kind = small.CASES[name].kind
    with session(seed=7):
        resumed = small.resume(small.trainer(small.MODELS[kind], ONE), folder / f"{name}-halfway")
    assert close(resumed, results[kind]["unbroken"][small.BROKEN_AFTER :], 2e-4)


class Saved:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.kept: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.kept[storage.data_ptr()] = storage.nbytes()
            # References are kept, because freed memory could be reused at the same address.
            self.alive.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.kept.values())


@pytest.mark.parametrize("trainable", ["all", "attention"])
@pytest.mark.parametrize("kind", ["dense", "hybrid-twice"])
def test_recomputing_changes_no_number(kind, trainable):
    curves, tensors = [], []
    for recompute in ("none", "full"):
        with session(seed=5):
            run = small.trainer(small.MODELS[kind], ONE, trainable=trainable, recompute=recompute)
            curves.append(small.steps(run, 0, 3))
            tensors.append(small.weights(run))
    assert curves[0] == curves[1]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_recomputing_keeps_less(kind):
    kept, gradients = {}, {}
    architecture = small.MODELS[kind]
    tokens = torch.arange(small.LENGTH)[None].expand(2, -1)
    for recompute in ("none", "full"):
        with session(seed=5):
            model = build_model(architecture, recompute=recompute).train()
            saved = Saved(model)
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
                hidden = model(tokens, tokens, None, labels=tokens)
            kept[recompute] = saved.bytes
            hidden.sum().backward()
            gradients[recompute] = {name: p.grad for name, p in model.named_parameters()}
    assert all(torch.equal(grad, gradients["full"][name]) for name, grad in gradients["none"].items())
    assert kept["full"] < kept["none"] / 2
