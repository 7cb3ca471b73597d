"""Precision settings: what reaches upstream's configs, what is refused, and that gradients may be summed in bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from parallel_runs import VOCABULARY, Motifs, layout

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import session
from megatron_prism.training import precision as module
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.precision import PrecisionSettings, check_recipe_here
from megatron_prism.training.trainer import Trainer

DENSE = Architecture("granite", VOCABULARY, 32, 4, 48, 4, 2, 8)
AWARE = {"precision_aware_optimizer": True}


def test_fp8_fields_have_the_names_of_megatron():
    settings = PrecisionSettings("tensorwise", fp8_param_gather=True, first_last_layers_bf16=True)
    fields = settings.transformer_fields("hybrid")
    assert fields == {
        **{"fp8": "hybrid", "fp8_recipe": "tensorwise", "fp8_param": True, "first_last_layers_bf16": True},
        **{"num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 1},
        "use_cpu_initialization": False,
    }
    assert settings.transformer_fields(None) == {}
    assert DistributedDataParallelConfig(**settings.ddp_fields()).fp8_param_gather


def test_optimizer_fields_are_accepted_by_megatron():
    settings = PrecisionSettings(
        **AWARE,
        grad_reduce_in_fp32=False,
        main_grads_dtype="bf16",
        exp_avg_dtype="bf16",
        exp_avg_sq_dtype="fp16",
    )
    fields = settings.optimizer_fields(None)
    assert fields["use_precision_aware_optimizer"]
    assert (fields["main_grads_dtype"], fields["exp_avg_sq_dtype"]) == (torch.bfloat16, torch.float16)
    assert OptimizerConfig(**PrecisionSettings().optimizer_fields(None)).exp_avg_dtype is torch.float32
    assert PrecisionSettings(**AWARE, optimizer_offload=0.5).optimizer_fields("e4m3")["optimizer_cpu_offload"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fp8_recipe": "current"}, r"precision\.fp8_recipe='current' is not possible"),
        ({"exp_avg_dtype": "bf16"}, "needs precision.precision_aware_optimizer=true"),
        ({"optimizer_offload": 0.5}, "needs precision.precision_aware_optimizer=true"),
        (AWARE | {"optimizer_offload": 1.5}, "must be a share from 0 to 1"),
        (AWARE | {"optimizer_offload": 1.0, "main_params_dtype": "fp16"}, "keeps fp32 weights"),
        (AWARE | {"main_grads_dtype": "bf16"}, "grad_reduce_in_fp32=false"),
    ],
)
def test_impossible_precision_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        PrecisionSettings(**fields)


@pytest.mark.parametrize(
    ("fields", "dtype", "fp8", "message"),
    [
        ({"fp8_recipe": "tensorwise"}, "bf16", None, "has no effect without fp8"),
        (
            {"first_last_layers_bf16": True},
            "bf16",
            "hybrid",
            "does not work with precision.fp8_recipe=delayed",
        ),
        (
            {"fp8_recipe": "tensorwise", "first_last_layers_bf16": True, "layers_at_end_in_bf16": 9},
            *("bf16", "hybrid", "layers_at_end_in_bf16=9"),
        ),
        ({"fp8_recipe": "mxfp8", "fp8_param_gather": True}, "bf16", "e4m3", "recipe=mxfp8; use tensorwise"),
        (AWARE, "fp32", None, "needs dtype=bf16"),
        ({"grad_reduce_in_fp32": False}, "fp32", None, "use dtype=bf16"),
    ],
)
def test_precision_that_does_not_fit_the_run_is_refused(fields, dtype, fp8, message):
    with pytest.raises(ConfigError, match=message):
        PrecisionSettings(**fields).check(DENSE, layout(), dtype, fp8)


def test_precision_of_distributed_state_needs_the_distributed_optimizer():
    plain = replace(layout(dp=2), use_distributed_optimizer=False)
    with pytest.raises(ParallelError, match="use_distributed_optimizer=true"):
        PrecisionSettings(**AWARE).check(DENSE, plain, "bf16", None)


@pytest.mark.parametrize(
    ("recipe", "capability", "enough"),
    [
        *[("delayed", (8, 9), True), ("delayed", (8, 0), False), ("blockwise", (9, 0), True)],
        *[("blockwise", (8, 9), False), ("mxfp8", (9, 0), False), ("mxfp8", (10, 0), True)],
    ],
)
def test_a_recipe_is_refused_on_a_gpu_without_it(monkeypatch, recipe, capability, enough):
    monkeypatch.setattr("megatron.core.utils.is_te_min_version", lambda version: True)
    monkeypatch.setattr(module, "compute_capability", lambda: capability)
    monkeypatch.setattr("torch.version.cuda", "12.9")
    if enough:
        check_recipe_here(recipe)
        return
    with pytest.raises(ConfigError, match="needs a GPU of compute capability"):
        check_recipe_here(recipe)


def test_every_recipe_names_the_version_that_has_it(monkeypatch):
    assert set(module.RECIPE_VERSIONS) == set(module.FP8_RECIPES)
    monkeypatch.setattr("megatron.core.utils.is_te_min_version", lambda version: False)
    with pytest.raises(ConfigError, match=r"blockwise needs Transformer Engine 2\.3\.0 or newer"):
        check_recipe_here("blockwise")


def test_gradients_in_bf16_and_no_clipping():
    def norms(clip, **fields):
        with session(layout(), seed=5):
            run = Trainer(
                *(DENSE, layout(), BatchConfig(16, 2, 8), OptimizerSettings(eps=1e-8, clip_grad=clip)),
                dtype=torch.bfloat16,
                precision=PrecisionSettings(**fields),
            )
            buffer = run.models[0].buffers[0].grad_data.dtype
            found = [run.step(Motifs(16), i * 8, 1e-2) for i in range(2)]
            return buffer, found

    full, lower = norms(0.0), norms(0.0, grad_reduce_in_fp32=False)
    assert (full[0], lower[0]) == (torch.float32, torch.bfloat16)
    assert lower[1] != full[1]
    assert lower[1][1] == pytest.approx(full[1][1], rel=0.02)
    # Adam divides gradients by their size, so only clipping to nearly nothing shows, next to eps.
    clipped = norms(1e-7)[1]
    assert clipped[0] == full[1][0]
    assert clipped[1] != full[1][1]


def test_main_weights_of_bf16_are_kept_in_fp32():
    with session(layout(), seed=5):
        run = Trainer(
            *(DENSE, layout(), BatchConfig(16, 2, 4), OptimizerSettings(eps=1e-8)), dtype=torch.bfloat16
        )
        main = [each for group in run.optimizer.param_groups for each in group["params"]]
        before = [each.clone() for each in main]
        run.step(Motifs(16), 0, 1e-6)
        assert {each.dtype for each in main} == {torch.float32}
        assert {each.dtype for each in run.models[0].parameters()} == {torch.bfloat16}
        # In bf16 such a small step would leave all weights but those near zero as they are.
        moved = [float((new != old).float().mean()) for new, old in zip(main, before, strict=True)]
        assert min(moved) > 0.9
