"""Models whose weights are loaded are built without drawing any, and everything in them is then loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from megatron.core import tensor_parallel
from parallel_runs import HYBRID
from tiny_models import FAMILIES, make_checkpoint

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.errors import CheckpointError
from megatron_prism.models import build
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import install_weights, model_state
from megatron_prism.models.families import architecture_from_config
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.rl.policy import Policy
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

DENSE = Architecture("granite", 64, 32, 2, 48, 4, 2, 8, max_position_embeddings=32)


@pytest.fixture(autouse=True)
def one_process():
    with session(seed=3):
        yield


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch fills memory that is not initialised with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def trainer(architecture: Architecture, initialize: bool) -> Trainer:
    return Trainer(
        architecture, ParallelConfig(), BatchConfig(16, 1, 1), OptimizerSettings(), dtype=torch.bfloat16,
        backend="torch", initialize=initialize,
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_loading_leaves_no_weight_undefined(name, tmp_path):
    """In the model and in the optimizer's fp32 copies."""
    folder = make_checkpoint(name, tmp_path)
    architecture = architecture_from_config(json.loads((folder / "config.json").read_text()))
    with poisoned_memory():
        run = trainer(architecture, initialize=False)
        assert any(parameter.isnan().any() for parameter in run.models[0].parameters())
        load_hf_weights(run.models, architecture, folder)
        run.optimizer.reload_model_params()
    expected = trainer(architecture, initialize=True)
    load_hf_weights(expected.models, architecture, folder)
    expected.optimizer.reload_model_params()
    for own, other in ((run.models[0], expected.models[0]), (run.optimizer, expected.optimizer)):
        parameters = own.parameters() if own is run.models[0] else own.get_parameters()
        others = other.parameters() if own is run.models[0] else other.get_parameters()
        for left, right in zip(parameters, others, strict=True):
            assert torch.equal(left, right)


def test_a_reference_is_copied_over_undefined_weights():
    """Blending with weight 1, as a soft update does, would keep a NaN."""
    policy = Policy.__new__(Policy)
    source, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    policy.trainer, policy.reference = SimpleNamespace(models=[source]), [target]  # type: ignore[assignment]
    target.weight.data.fill_(float("nan"))
    policy.copy_to_reference()
    assert torch.equal(target.weight, source.weight)
    target.weight.data.fill_(float("nan"))
    policy.soft_update_reference(1.0)
    assert target.weight.isnan().any()


def test_a_weight_that_the_checkpoint_lacks_is_an_error():
    """Otherwise it would keep whatever the memory held."""
    model = build_model(DENSE, initialize=False)
    state = {
        key: value.data
        for key, value in model_state([model])["model"].items()
        if key != "decoder.final_layernorm.weight"
    }
    with pytest.raises(CheckpointError, match=r"no values for decoder\.final_layernorm\.weight"):
        install_weights([model], {"model": state})


def test_no_random_number_is_drawn():
    tracker = tensor_parallel.get_cuda_rng_tracker()
    before = torch.get_rng_state(), tracker.get_states()["model-parallel-rng"].clone()
    build_model(DENSE, initialize=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(tracker.get_states()["model-parallel-rng"], before[1])
    build_model(DENSE)
    assert not torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize("architecture", [DENSE, HYBRID])
def test_weights_are_marked_as_tensor_parallel_all_the_same(architecture):
    """Upstream marks them where it initialises them; without the marks, norms and counts leave ranks out."""
    marks = ("tensor_model_parallel", "partition_dim", "sequence_parallel", "allreduce", "shared_embedding")
    built = [dict(build_model(architecture, initialize=each).named_parameters()) for each in (True, False)]
    for name, parameter in built[0].items():
        for mark in marks:
            assert getattr(built[1][name], mark, None) == getattr(parameter, mark, None), (name, mark)
    assert any(parameter.tensor_model_parallel for parameter in built[1].values() if parameter.dim() == 2)


def test_upstreams_own_switch_would_lose_the_marks():
    model = build_model(DENSE, perform_initialization=False)
    assert not hasattr(model.decoder.layers[0].mlp.linear_fc1.weight, "tensor_model_parallel")


@pytest.mark.parametrize("architecture", [DENSE, HYBRID])
@pytest.mark.parametrize("initialize", [True, False])
def test_the_whole_model_is_on_the_device(architecture, initialize, monkeypatch):
    """`meta` stands for the GPU: everything must be there before DDP, which moves only what is trained."""
    monkeypatch.setattr(build, "device", lambda: torch.device("meta"))
    model = build_model(architecture, initialize=initialize)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert architecture is HYBRID or model.rotary_pos_emb.inv_freq.is_meta
