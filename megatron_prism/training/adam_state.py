"""Adam's state around a checkpoint. Each implementation of Adam keeps its step count in another place.

torch's Adam and AdamW keep a `step` with every parameter. The FusedAdam of Transformer Engine and of Apex keeps one
with every parameter group, and no other state than its moments (and `master_param`, if it holds the main weights).
What has to be done follows from the class of the optimizer, not from the device:

- Moments exist only after the first step, but upstream reads them when it saves (distrib_optimizer.py:1060), and it
  needs torch's `step` when it loads (distrib_optimizer.py:593). `prepare_state` creates them.
- Upstream's distributed optimizer copies the loaded tensors over the whole state of a parameter, the `step` of torch's
  Adam included, which the checkpoint does not hold (distrib_optimizer.py:911). `load_state` hides it from the copy.
- Upstream gives all of torch's parameters the same `step` tensor (distrib_optimizer.py:814). AdamW then increments it
  once per parameter, and a resumed run is wrong without an error. `load_state` gives each parameter its own.
- A checkpoint may come from another implementation. `load_state` moves the step count to where this one looks for it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from megatron_prism.platform.hardware import device

# The key of a state that belongs to no parameter. torch saves and loads other keys than parameters unchanged.
_NO_PARAMETER = "step count"


def keeps_steps_per_parameter(inner: torch.optim.Optimizer) -> bool:
    """Whether this is torch's Adam or AdamW, and not a FusedAdam, which keeps its step count per group."""
    return isinstance(inner, torch.optim.AdamW | torch.optim.Adam)


def use_fused_kernel(optimizer: Any) -> None:
    """Let torch's AdamW update each parameter with one fused kernel, which exists on the CPU, too."""
    for inner in _inner_optimizers(optimizer):
        if keeps_steps_per_parameter(inner):
            for group in inner.param_groups:
                group["fused"], group["foreach"] = True, False


def prepare_state(optimizer: Any) -> None:
    """Before a save or a load: create missing moments, and agree on the step count. All ranks call this."""
    for inner in _inner_optimizers(optimizer):
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    _create(inner, group, parameter)
    _share_step_count(optimizer)


def _create(inner: Any, group: dict[str, Any], parameter: torch.Tensor) -> None:
    """The state of a parameter before the first step."""
    if hasattr(inner, "initialize_state"):
        # Transformer Engine's, which may keep moments in a lower precision, and main weights. Before version 2.1
        # it did not take the second argument.
        remainders = getattr(inner, "store_param_remainders", False) and parameter.dtype is torch.bfloat16
        further = [remainders] if len(inspect.signature(inner.initialize_state).parameters) > 1 else []
        inner.initialize_state(parameter, *further)
        return
    state = inner.state[parameter]
    state["exp_avg"] = torch.zeros_like(parameter.data, dtype=torch.float32)
    state["exp_avg_sq"] = torch.zeros_like(parameter.data, dtype=torch.float32)
    if keeps_steps_per_parameter(inner):
        state["step"] = _step_tensor(0, group, parameter)


def _step_tensor(count: float, group: dict[str, Any], parameter: torch.Tensor) -> torch.Tensor:
    """torch's fused and capturable kernels read the step count on the parameter's device, all others on the CPU."""
    on_device = group.get("fused") or group.get("capturable")
    step = torch.tensor(float(count), dtype=torch.float32)
    return step.to(parameter.device) if on_device else step


def _share_step_count(optimizer: Any) -> None:
    """Copy the step count to ranks without trained parameters.

    Such ranks exist if only attention is trained and a pipeline stage has no attention layer. Upstream reads the step
    count from the AdamW of every rank (distrib_optimizer.py:594), and the checkpoint stores that of rank 0 for all.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    parts = [each for each in optimizer.chained_optimizers if isinstance(each, DistributedOptimizer)]
    steps = [_step_count(each.optimizer) for each in parts]
    largest = torch.tensor([max([0, *steps])], dtype=torch.int64, device=device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    for part in parts:
        inner = part.optimizer
        if any(group["params"] for group in inner.param_groups):
            continue
        for group in inner.param_groups:
            group["step"] = int(largest)
        if keeps_steps_per_parameter(inner):
            inner.state[_NO_PARAMETER] = {"step": torch.tensor(float(largest))}


def _step_count(inner: Any) -> int:
    counts = [state["step"] for state in inner.state.values() if "step" in state]
    counts += [group["step"] for group in inner.param_groups if group["params"] and "step" in group]
    return int(max([0, *counts]))


def load_state(optimizer: Any, loaded: Any) -> None:
    """`optimizer.load_state_dict(loaded)`, whichever Adam wrote the state and whichever reads it.

    The settings of the parameter groups stay those of this run; only the step count is taken from the checkpoint.

    Args:
        optimizer: Megatron's, after `prepare_state`.
        loaded: what was read for its `sharded_state_dict`; it is changed.
    """
    parts = optimizer.chained_optimizers
    states = [loaded] if len(parts) == 1 else [loaded[number] for number in range(len(parts))]
    for part, state in zip(parts, states, strict=True):
        if getattr(part, "optimizer", None) is None:
            part.load_state_dict(state)
            continue
        inner = part.optimizer
        settings = [
            {key: value for key, value in group.items() if key not in ("params", "step")}
            for group in inner.param_groups
        ]
        _load_part(part, state)
        for group, kept in zip(inner.param_groups, settings, strict=True):
            group.update(kept)
            _separate_steps(inner, group)


def _load_part(part: Any, state: dict[str, Any]) -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    per_parameter = keeps_steps_per_parameter(part.optimizer)
    if not isinstance(part, DistributedOptimizer):
        _place_step(state.get("optimizer", state), per_parameter)
        part.load_state_dict(state)
        return
    for group in state["optimizer"]["param_groups"]:
        if per_parameter or "step" in group:
            group["step"] = int(group.get("step", 0))
    # As upstream's load_state_dict, in two halves: the steps and groups, and then the tensors of the parameters.
    tensors, kind = state.pop("param_state"), state.pop("param_state_sharding_type")
    part.load_state_dict(state)
    # Unlike the others, upstream's load of 'dp_reshardable' (distrib_optimizer.py:1772) does not switch off gradients.
    with torch.no_grad(), _without_steps(part.optimizer):
        getattr(part, f"load_parameter_state_from_{kind}")(tensors)


def _place_step(saved: dict[str, Any], per_parameter: bool) -> None:
    """Without the distributed optimizer upstream keeps torch's step as `common_step` (optimizer.py:787)."""
    step = saved["state"].pop("common_step", None)
    for group in saved["param_groups"]:
        found = group.pop("step", None)
        step = found if step is None else step
    count = int(step or 0)
    if per_parameter:
        saved["state"]["common_step"] = torch.tensor(float(count))
    elif count:
        for group in saved["param_groups"]:
            group["step"] = count


@contextlib.contextmanager
def _without_steps(inner: torch.optim.Optimizer) -> Iterator[None]:
    """Hide torch's step counts from a copy that replaces the whole state of a parameter."""
    hidden = [(state, state.pop("step")) for state in inner.state.values() if "step" in state]
    try:
        yield
    finally:
        for state, step in hidden:
            state["step"] = step


def _separate_steps(inner: Any, group: dict[str, Any]) -> None:
    """Give each parameter of torch's Adam a step tensor of its own."""
    if keeps_steps_per_parameter(inner):
        for parameter in group["params"]:
            state = inner.state[parameter]
            state["step"] = _step_tensor(float(state["step"]), group, parameter)


def _inner_optimizers(optimizer: Any) -> Iterator[Any]:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "optimizer", None) is not None:
            yield part.optimizer
