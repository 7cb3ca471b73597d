"""Which modules a start imports, and that the rules of lean_imports change nothing else."""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from heavy_modules import STACKS, TRANSFORMERS

from megatron_prism.platform import lean_imports

TRAINING = """
import json, sys
from megatron_prism.platform.console import setup_logging
setup_logging()
import megatron_prism.training.stage, megatron_prism.training.trainer, megatron_prism.training.checkpoint
import megatron_prism.training.metrics, megatron_prism.conversion.init_from_hf, megatron_prism.data.blend
import megatron_prism.models.specs_torch, megatron_prism.models.layers.recompute
import megatron_prism.generation.megatron_engine, megatron_prism.rl.rl_run
import torch, torch.utils.checkpoint, megatron.core.optimizer
from megatron_prism.platform import cpu_seam
cpu_seam.install()
weight = torch.ones(3, requires_grad=True)
optimizer = torch.optim.AdamW([weight], lr=0.1)
torch.utils.checkpoint.checkpoint(lambda x: (x * x).sum(), weight, use_reentrant=True).backward()
optimizer.step()
optimizer.zero_grad()
print(json.dumps(sorted(sys.modules)))
"""

pytestmark = pytest.mark.skipif(
    lean_imports.may_have_gpu(), reason="imports are left alone beside a GPU's driver"
)


def modules_after(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_training_sampling_and_reinforcement_load_no_compiler_and_nobody_elses_stack():
    loaded = modules_after(TRAINING)
    assert "megatron.core.optimizer" in loaded
    assert not (STACKS | TRANSFORMERS) & loaded


def test_megatrons_functions_are_plain_ones():
    from megatron.core import jit
    from megatron.core.fusions import fused_bias_dropout

    assert jit.jit_fuser is jit.noop_decorator
    assert not hasattr(fused_bias_dropout.bias_dropout_add_fused_train, "_torchdynamo_orig_callable")


def ran(rule, module: SimpleNamespace) -> SimpleNamespace:
    rule(lambda it: None, module)
    return module


def test_dynamo_is_told_what_not_to_compile_once_somebody_has_loaded_it(monkeypatch):
    calls = []

    def upstream(function, recursive=True):
        def disabled(*args):
            calls.append(recursive)
            return function(*args)

        return disabled

    module = ran(lean_imports._dynamo_when_loaded, SimpleNamespace(_disable_dynamo=upstream))
    square = module._disable_dynamo(recursive=False)(lambda x: x * x)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert (square(3), calls) == (9, [])
    monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))
    assert (square(3), calls) == (9, [False])


def test_an_optimizers_step_keeps_its_rule_for_gradients(monkeypatch):
    import torch

    upstream_calls = []

    def upstream(step):
        def call(*args):
            upstream_calls.append(args)
            return step(*args)

        return call

    module = ran(
        lean_imports._step_without_graph,
        SimpleNamespace(_use_grad_for_differentiable=upstream, torch=torch),
    )
    step = module._use_grad_for_differentiable(lambda optimizer: torch.is_grad_enabled())
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert not step(SimpleNamespace(defaults={"differentiable": False}))
    assert step(SimpleNamespace(defaults={"differentiable": True}))
    assert torch.is_grad_enabled()
    assert upstream_calls == []
    monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))
    step(SimpleNamespace(defaults={"differentiable": True}))
    assert len(upstream_calls) == 1


def test_garbage_is_collected_again_after_an_import_even_one_that_fails():
    seen = []

    def execute(module):
        seen.append(gc.isenabled())
        raise ImportError("broken on purpose")

    with pytest.raises(ImportError, match="on purpose"):
        lean_imports._without_collecting(execute, ModuleType("x"))
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        lean_imports._without_collecting(lambda module: None, ModuleType("x"))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_beside_a_gpus_driver_nothing_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "meta_path", [])
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(lean_imports, "DRIVER_FILES", (str(tmp_path / "nvidiactl"),))
    lean_imports.install()
    assert sys.meta_path == []
    monkeypatch.setattr(lean_imports, "DRIVER_FILES", ())
    lean_imports.install()
    lean_imports.install()
    assert [type(finder) for finder in sys.meta_path] == [lean_imports.LeanFinder]


def test_other_modules_are_found_as_ever_and_absent_ones_stay_absent():
    finder = lean_imports.LeanFinder()
    assert finder.find_spec("json", None) is None
    assert finder.find_spec("torch", ["/nowhere"]) is None
    spec = finder.find_spec("torch", None)
    assert spec is not None
    assert isinstance(spec.loader.exec_module, functools.partial)  # type: ignore[union-attr]
