"""RMSNorm in plain torch that also works under sequence parallelism (upstream's torch_norm.py:32 refuses it)."""

from __future__ import annotations

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; x is `[..., hidden]`.

    Without `eps` the model's epsilon is used; upstream's Mamba layer passes none (mamba_layer.py:85).
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        # This attribute makes finalize_model_grads sum this gradient over the tensor-parallel ranks.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010 (Parameter declares no such field)
        self.eps = config.layernorm_epsilon if eps is None else eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """Mamba-2's output norm: y * silu(z) if there is a z, then RMSNorm over groups of `group_size` channels.

    Parameter names are those of mamba_ssm's RMSNormGated, so checkpoints are shared with it.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm_before_gate:
            raise ValueError("norm_before_gate: Megatron's mixer gates first")
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.eps = eps
        self.group_size = group_size or hidden_size

    def forward(self, y: Tensor, z: Tensor | None = None) -> Tensor:
        h = y.float()
        if z is not None:
            h = h * F.silu(z.float())
        h = F.rms_norm(h.unflatten(-1, (-1, self.group_size)), (self.group_size,), None, self.eps)
        return (h.flatten(-2) * self.weight.float()).to(y.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        from megatron.core import parallel_state
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=(metadata or {}).get("dp_cp_group")
            or parallel_state.get_data_parallel_group(with_context_parallel=True),
        )
