"""Megatron's MambaMixer with plain-torch kernels: the same parameters, checkpoints and parallelism, no mamba_ssm.

Upstream's constructor refuses to run without mamba_ssm (mamba_mixer.py:173) and takes its gated norm from it (:355);
both names are answered while it runs. The three kernels are overridden as methods, so a machine that has mamba_ssm
can build this mixer and upstream's side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.ssm import mamba_mixer as upstream
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.layers.norm import GatedRMSNorm
from megatron_prism.models.layers.segments import Segments
from megatron_prism.models.layers.ssd import ssd_scan, ssd_step


@contextmanager
def _without_mamba_ssm() -> Iterator[None]:
    names = {"HAVE_MAMBA_SSM": True, "ExtendedRMSNorm": GatedRMSNorm, "RMSNormGated": GatedRMSNorm}
    before = {name: getattr(upstream, name) for name in names}
    for name, value in names.items():
        setattr(upstream, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(upstream, name, value)


class TorchMambaMixer(upstream.MambaMixer):
    """Mamba-2 mixer on `[seq, batch, hidden]` with the scan of `ssd.py`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _without_mamba_ssm():
            super().__init__(*args, **kwargs)
        # The texts of a packed row, see segments.py.
        self.segments: Segments | None = None

    def _ssm_training(self, zxBCdt: Tensor, packed_seq_params: Any = None) -> Tensor:
        if packed_seq_params is not None:
            raise ValueError(
                "packed_seq_params: the torch Mamba kernel takes packed texts as `segments` (segments.py)"
            )
        segments = self.segments
        y, z, _, _ = self._convolve_and_scan(zxBCdt if segments is None else segments.apart(zxBCdt))
        if segments is not None:
            y, z = segments.together(y), segments.together(z)
        y, z = self.cp.post_conv_ssm(y), self.cp.post_conv_ssm(z)
        return self.norm(y, z)

    def _ssm_prefill(
        self, zxBCdt: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None, **_: Any
    ) -> Tensor:
        y, z, window, state = self._convolve_and_scan(zxBCdt)
        if conv_state is not None and ssm_state is not None:
            conv_state.copy_(window)
            ssm_state.copy_(state)
        return self.norm(y, z)

    def _convolve_and_scan(self, zxBCdt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y and z `[seq, batch, inner]`, the last d_conv conv inputs `[batch, channels, d_conv]`, the last state."""
        inner, state_dim = self.cp.d_inner_local_tpcp, self.d_state
        groups, heads = self.cp.ngroups_local_tpcp, self.cp.nheads_local_tpcp
        z, xBC, dt = zxBCdt.split([inner, inner + 2 * groups * state_dim, heads], -1)
        length, batch, _ = xBC.shape
        channels_first = xBC.permute(1, 2, 0)
        # [batch, channels, seq]: the causal convolution sees d_conv - 1 zeros before the first token.
        padded = F.pad(channels_first, (self.d_conv - 1, 0))
        weight, bias = self.cp.get_conv1d_weight(), self.cp.get_conv1d_bias()
        mixed = F.silu(
            F.conv1d(padded, weight.to(padded.dtype), bias.to(padded.dtype), groups=weight.shape[0])
        )
        x, B, C = mixed.transpose(1, 2).split([inner, groups * state_dim, groups * state_dim], -1)
        step = F.softplus(dt.transpose(0, 1).float() + self.cp.get_dt_bias().float())
        y, state = ssd_scan(
            x.reshape(batch, length, heads, self.headdim),
            step,
            -torch.exp(self.cp.get_A_log().float()),
            B.reshape(batch, length, groups, state_dim),
            C.reshape(batch, length, groups, state_dim),
            self.cp.get_D(),
        )
        window = F.pad(channels_first, (self.d_conv - length, 0))
        return y.flatten(2).transpose(0, 1).contiguous(), z, window, state

    def _ssm_decode(
        self, zxBCdt: Tensor, conv_state: Tensor, ssm_state: Tensor, batch_indices: Tensor | None = None
    ) -> Tensor:
        """One token: zxBCdt `[1, batch, projection]` -> `[1, batch, inner]`; both states move on in place."""
        inner, groups = self.d_inner_local_tp, self.ngroups_local_tp
        heads, state_dim = self.nheads_local_tp, self.d_state
        z, xBC, dt = zxBCdt[0].split([inner, inner + 2 * groups * state_dim, heads], -1)
        conv_state.copy_(torch.cat([conv_state[:, :, 1:], xBC[:, :, None]], -1))
        mixed = (conv_state * self.conv1d.weight[:, 0]).sum(-1) + self.conv1d.bias
        x, B, C = F.silu(mixed).to(xBC.dtype).split([inner, groups * state_dim, groups * state_dim], -1)
        batch = x.shape[0]
        y = ssd_step(
            x.view(batch, heads, self.headdim),
            F.softplus(dt.float() + self.dt_bias.float()),
            -torch.exp(self.A_log.float()),
            B.view(batch, groups, state_dim),
            C.view(batch, groups, state_dim),
            self.D,
            ssm_state,
        )
        return self.norm(y.flatten(1), z)[None]
