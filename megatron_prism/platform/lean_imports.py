"""Import torch and Megatron-Core in half the time on a machine without a GPU; on other machines this does nothing.

`install` puts a finder first on `sys.meta_path`. For the few modules in `RULES`, Python finds the file as usual, and
the rule runs before or after the module's code. A module that was already imported, or that another finder provides,
is not changed.

F  torch, megatron.core, transformers and nemo_run: no garbage collection during their import. All of their million
   objects stay, yet Python would visit them several times (0.2 s each time). Afterwards they are frozen, so that later
   collections skip them.
G  megatron.core.jit: `disable_jit_fuser()`, a switch of Megatron. jit.py:21 sets the fuser to `torch.compile`, so a
   decorator on about forty functions loads dynamo and inductor. The torch layers of this package call none of these
   functions in a way that would be compiled (`bias_*_fusion` is off), so the results are bitwise the same.
H  torch._compile: functions that must not be compiled (`Optimizer.zero_grad`, `checkpoint`) import dynamo to disable it
   (torch/_compile.py:44). While dynamo is not loaded, there is nothing to disable.
I  torch.optim.optimizer: each optimizer's step imports dynamo to break its graph (optimizer.py:61, 79). While dynamo is
   not loaded, there is no graph.
"""

from __future__ import annotations

import atexit
import functools
import gc
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# Device files of a GPU driver: NVIDIA, NVIDIA under WSL, AMD. Torch knows, too, but must not be imported here.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

DYNAMO = "torch._dynamo"

Execute = Callable[[ModuleType], None]


def may_have_gpu() -> bool:
    """True if a GPU driver is loaded. A process that cannot use the GPU then only starts more slowly."""
    return any(Path(file).exists() for file in DRIVER_FILES)


def install() -> None:
    """Apply the rules to later imports. Does nothing when called again, or if there may be a GPU."""
    if not may_have_gpu() and not any(isinstance(finder, LeanFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LeanFinder())


class LeanFinder(MetaPathFinder):
    """Finds the modules of `RULES` like Python does, and wraps the execution of their code."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        rule = RULES.get(fullname)
        spec = None if rule is None else PathFinder.find_spec(fullname, path, target)
        if rule is not None and spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = functools.partial(rule, loader.exec_module)
        return spec


def _without_collecting(execute: Execute, module: ModuleType) -> None:
    """Rule F. If collection is already off, by an outer import or by the caller, this changes nothing."""
    if not gc.isenabled():
        execute(module)
        return
    gc.disable()
    try:
        execute(module)
    finally:
        gc.freeze()
        # Libraries that count remaining objects at exit (such as triton's) would report frozen objects as leaks.
        atexit.register(gc.unfreeze)
        gc.enable()


def _without_compiler(execute: Execute, module: ModuleType) -> None:
    """Rule G."""
    execute(module)
    module.disable_jit_fuser()


def _dynamo_when_loaded(execute: Execute, module: ModuleType) -> None:
    """Rule H."""
    execute(module)
    upstream = module._disable_dynamo

    def disable_dynamo(function: Any = None, recursive: bool = True) -> Any:
        if function is None:
            return functools.partial(disable_dynamo, recursive=recursive)
        disabled = upstream(function, recursive)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (disabled if DYNAMO in sys.modules else function)(*args, **kwargs)

        return call

    module._disable_dynamo = functools.wraps(upstream)(disable_dynamo)  # type: ignore[attr-defined]


def _step_without_graph(execute: Execute, module: ModuleType) -> None:
    """Rule I: upstream's wrapper of `step` without its two calls of dynamo."""
    execute(module)
    upstream = module._use_grad_for_differentiable

    def use_grad_for_differentiable(step: Any) -> Any:
        may_break_graph = upstream(step)

        @functools.wraps(step)
        def call(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if DYNAMO in sys.modules:
                return may_break_graph(optimizer, *args, **kwargs)
            with module.torch.set_grad_enabled(optimizer.defaults["differentiable"]):
                return step(optimizer, *args, **kwargs)

        return call

    module._use_grad_for_differentiable = use_grad_for_differentiable  # type: ignore[attr-defined]


RULES: dict[str, Callable[[Execute, ModuleType], None]] = {
    "torch": _without_collecting,
    "megatron.core": _without_collecting,
    "transformers": _without_collecting,
    "nemo_run": _without_collecting,
    "megatron.core.jit": _without_compiler,
    "torch._compile": _dynamo_when_loaded,
    "torch.optim.optimizer": _step_without_graph,
}
