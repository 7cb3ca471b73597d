"""Stand-ins for the FusedAdam of Transformer Engine and of Apex: their state layouts and checks, computed with torch.

What upstream and this project read of them is the same as in the originals: constructor arguments, where the step count
and the moments live, their dtypes, what `state_dict` returns and `load_state_dict` accepts. The kernels are replaced by
the formulas of AdamW in fp32. Sources: transformer_engine/pytorch/optimizers/fused_adam.py (2.8) and
apex/optimizers/fused_adam.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def _adamw(
    group: dict[str, Any], values: torch.Tensor, gradient: torch.Tensor, moments: list[torch.Tensor]
) -> None:
    """One step of AdamW on fp32 tensors, in place."""
    (beta1, beta2), step, (first, second) = group["betas"], group["step"], moments
    assert isinstance(step, int), f"the kernels take an integer step, not {step!r}"
    gradient = gradient.float()
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    update = first / (1 - beta1**step) / denominator + group["weight_decay"] * values
    values.add_(update, alpha=-group["lr"])


class ApexFusedAdam(torch.optim.Optimizer):
    """`step` in the group; moments in fp32, made in the first step; no other state."""

    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
        weight_decay=0.0, amsgrad=False, set_grad_none=True, capturable=False, use_master=False,
    ):  # fmt: skip
        assert adam_w_mode
        assert not amsgrad
        assert not capturable
        assert not use_master
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})

    def step(self, closure=None):
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group["step"] + 1 if "step" in group else 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if len(state) == 0:
                    for name in MOMENTS:
                        state[name] = torch.zeros_like(parameter.data).float()
                values = parameter.data.float()
                _adamw(group, values, parameter.grad.data, [state[name] for name in MOMENTS])
                parameter.data.copy_(values)


class TransformerEngineFusedAdam(torch.optim.Optimizer):
    """`step` in the group; moments in a chosen dtype with scales beside the state; main weights if asked."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *,
        bias_correction=True, adam_w_mode=True, capturable=False, master_weights=False,
        master_weight_dtype=torch.float32, exp_avg_dtype=torch.float32, exp_avg_sq_dtype=torch.float32,
        use_decoupled_grad=False, store_param_remainders=False, set_grad_none=None,
    ):  # fmt: skip
        assert adam_w_mode
        assert not amsgrad
        assert not capturable
        if master_weights and master_weight_dtype not in (torch.float32, torch.float16):
            raise RuntimeError("FusedAdam only supports fp32/fp16 master weights.")
        for dtype in (exp_avg_dtype, exp_avg_sq_dtype):
            if dtype not in (torch.float32, torch.float16, torch.bfloat16):
                raise RuntimeError("FusedAdam only supports fp32/fp16/bf16/fp8 exp_avg.")
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})
        self.master_weights, self.use_decoupled_grad = master_weights, use_decoupled_grad
        self.store_param_remainders = (
            store_param_remainders and master_weights and master_weight_dtype is torch.float32
        )
        self.name_to_dtype_map = dict(zip(MOMENTS, (exp_avg_dtype, exp_avg_sq_dtype), strict=True))
        self.name_to_dtype_map["master_param"] = master_weight_dtype
        self._scales: dict[torch.Tensor, dict[str, torch.Tensor]] = {}

    def _remainders(self, parameter: torch.Tensor, name: str = "master_param") -> bool:
        return self.store_param_remainders and name == "master_param" and parameter.dtype is torch.bfloat16

    def _initialize_state(self, param, state_name, zero_buffer, store_param_remainders=False):
        dtype = self.name_to_dtype_map[state_name]
        if store_param_remainders:
            self.state[param][state_name] = torch.zeros_like(param, dtype=torch.int16)
        else:
            self.state[param][state_name] = torch.full_like(
                param, 0 if zero_buffer else float("nan"), dtype=dtype
            )
        if dtype is not torch.float32:
            self._scales.setdefault(param, {})[state_name] = torch.ones([1], device=param.device)

    def initialize_state(self, param, store_param_remainders):
        for name in MOMENTS:
            self._initialize_state(param, name, zero_buffer=True)
        if self.master_weights:
            self._initialize_state(param, "master_param", False, store_param_remainders)
            if not store_param_remainders:
                self.set_scaled_state(param, "master_param", param.clone().detach().float())

    def get_unscaled_state(self, param, state_name):
        state, dtype = self.state[param][state_name], self.name_to_dtype_map[state_name]
        if dtype is torch.float16:
            return state.float().mul_(self._scales[param][state_name])
        if dtype is torch.bfloat16:
            return state.float()
        assert state.dtype == (torch.int16 if self._remainders(param, state_name) else torch.float32)
        return state

    @torch.no_grad()
    def set_scaled_state(self, param, state_name, unscaled_state):
        remainders = self._remainders(param, state_name)
        assert unscaled_state.dtype == (torch.int16 if remainders else torch.float32)
        if state_name not in self.state[param]:
            self._initialize_state(param, state_name, False, remainders)
        state = self.state[param][state_name]
        if self.name_to_dtype_map[state_name] is torch.float16:
            scale = unscaled_state.abs().max() / (torch.finfo(torch.float16).max / 2)
            self._scales[param][state_name].copy_(scale)
            unscaled_state = unscaled_state * torch.where(scale > 0, scale.reciprocal(), 0.0)
        state.copy_(unscaled_state)

    def state_dict(self):
        found = super().state_dict()
        for parameter, number in self._numbers(found).items():
            if number in found["state"]:
                names = found["state"][number]
                found["state"][number] = {name: self.get_unscaled_state(parameter, name) for name in names}
        return found

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for parameter, number in self._numbers(state_dict).items():
            if number in state_dict["state"]:
                self.state[parameter] = {}
                for name, value in state_dict["state"][number].items():
                    remainders = self._remainders(parameter, name)
                    self.set_scaled_state(parameter, name, value if remainders else value.float())

    def _numbers(self, saved: dict[str, Any]) -> dict[torch.Tensor, int]:
        pairs = zip(self.param_groups, saved["param_groups"], strict=True)
        return {p: n for own, group in pairs for p, n in zip(own["params"], group["params"], strict=True)}

    def step(self, closure=None, grad_scaler=None):
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group["step"] + 1 if "step" in group else 1
            for parameter in group["params"]:
                if len(self.state[parameter]) == 0:
                    self.initialize_state(parameter, self._remainders(parameter))
                name = "decoupled_grad" if self.use_decoupled_grad else "grad"
                gradient = getattr(parameter, name, None)
                if gradient is not None:
                    self._update(group, parameter, gradient.data)

    @torch.no_grad()
    def _update(self, group: dict[str, Any], parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        state = self.state[parameter]
        moments = {name: self.get_unscaled_state(parameter, name).float() for name in MOMENTS}
        values = parameter.data.float()
        if self._remainders(parameter):
            values = join(parameter.data, state["master_param"])
        elif self.master_weights:
            values = self.get_unscaled_state(parameter, "master_param").float()
        _adamw(group, values, gradient, list(moments.values()))
        for name, moment in moments.items():
            self.set_scaled_state(parameter, name, moment)
        if self._remainders(parameter):
            high, low = split(values)
            parameter.data.copy_(high)
            state["master_param"].copy_(low)
            return
        if self.master_weights:
            self.set_scaled_state(parameter, "master_param", values)
        parameter.data.copy_(values)


def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 as bf16, rounded where the low half is negative, and its low 16 bits."""
    bits = values.contiguous().view(torch.int32)
    low = bits.to(torch.int16)
    return (((bits >> 16) + (low < 0)) << 16).view(torch.float32).bfloat16(), low


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The fp32 values of `split`."""
    bits = (high.float().view(torch.int32) >> 16) - (low < 0).int()
    return ((bits << 16) | (low.int() & 0xFFFF)).view(torch.float32)


KINDS = {"te": TransformerEngineFusedAdam, "apex": ApexFusedAdam}


@contextmanager
def fused_adam(kind: str) -> Iterator[None]:
    """Megatron-Core as it is with 'te' or 'apex' installed; with 'torch', as it is with neither."""
    import megatron.core.optimizer as upstream
    from megatron.core.optimizer import distrib_optimizer

    changes: dict[Any, dict[str, Any]] = {upstream: {}, distrib_optimizer: {}}
    if kind != "torch":
        changes[upstream] = {"Adam": KINDS[kind], "USING_PYTORCH_OPTIMIZER": False}
        changes[distrib_optimizer] = {
            "Adam": KINDS[kind],
            "HAVE_APEX_OR_TE": True,
            "USING_TE_OPTIMIZER": kind == "te",
            "USING_APEX_OPTIMIZER": kind == "apex",
        }
    before = {module: {name: getattr(module, name) for name in names} for module, names in changes.items()}
    try:
        for module, names in changes.items():
            for name, value in names.items():
                setattr(module, name, value)
        yield
    finally:
        for module, names in before.items():
            for name, value in names.items():
                setattr(module, name, value)
