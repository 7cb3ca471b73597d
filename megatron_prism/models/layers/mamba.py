"""Megatron's MambaMixer with plain-torch kernels: the same parameters, checkpoints and parallelism, no mamba_ssm.

Upstream's constructor refuses to run without mamba_ssm (mamba_mixer.py:173) and takes its gated norm from it (:355);
both names are replaced while it runs. The three kernels are overridden as methods, so a machine that has mamba_ssm
can build this mixer and upstream's side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.ssm import mamba_mixer as upstream
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.layers.decode_cache import Branches, DecodeCache, Prefill
from megatron_prism.models.layers.mamba_scan import (
    MixerShape,
    MixerWeights,
    convolve_and_scan,
    mamba_scan,
)
from megatron_prism.models.layers.norm import GatedRMSNorm
from megatron_prism.models.layers.row_documents import documents_of
from megatron_prism.models.layers.ssd import ssd_step


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

    recompute_output = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _without_mamba_ssm():
            super().__init__(*args, **kwargs)
        # The texts of a generation batch (decode_cache.py).
        self.decode_cache: DecodeCache | None = None

    def _ssm_training(self, zxBCdt: Tensor, packed_seq_params: Any = None) -> Tensor:
        """`[seq, batch, inner]` of whole sequences: context parallelism has moved them from tokens to heads."""
        documents = documents_of(packed_seq_params)
        shape, _ = self._parts(self.cp)
        # One split: the gradients of all parts are then joined in one pass.
        z, xBC, dt = zxBCdt.split([shape.widths[0], sum(shape.widths), shape.heads], -1)
        y = self._scan_rows(xBC, dt) if documents is None else documents.apply(self._scan_rows, xBC, dt)
        return self.norm(self.cp.post_conv_ssm(y), self.cp.post_conv_ssm(z))

    def _scan_rows(self, xBC: Tensor, dt: Tensor) -> Tensor:
        shape, weights = self._parts(self.cp)
        return mamba_scan(xBC, dt, weights, shape, again=self.recompute_output)

    def forward(
        self, hidden_states: Tensor, *args: Any, packed_seq_params: Any = None, **keywords: Any
    ) -> Any:
        projected, _ = self.in_proj(hidden_states)
        if self.decode_cache is not None:
            return self.out_proj(self._generate(self.decode_cache, projected))
        # Not upstream's forward: with packed_seq_params it reorders documents for Transformer Engine's context
        # parallelism (mamba_context_parallel.py:396), and ours are rows.
        return self.out_proj(self._ssm_training(self.cp.pre_conv_ssm(projected), packed_seq_params))

    def _generate(self, cache: DecodeCache, zxBCdt: Tensor) -> Tensor:
        step = cache.step
        channels = self.d_inner_local_tp + 2 * self.ngroups_local_tp * self.d_state
        window, state = cache.tensors(
            self,
            [(channels, self.d_conv), (self.nheads_local_tp, self.headdim, self.d_state)],
            [zxBCdt.dtype, torch.float32],
            zxBCdt.device,
        )
        if isinstance(step, Prefill | Branches):
            lengths = torch.tensor(step.segments.lengths, device=zxBCdt.device)
            before = None
            if isinstance(step, Branches):
                before = window[step.slots], state[step.slots]
                # The padding, which continues no token.
                before[0][step.before == 0], before[1][step.before == 0] = 0.0, 0.0
            y, z, *last = self._prefill(step.segments.unpack(zxBCdt), lengths, before)
            if isinstance(step, Prefill) and step.slots is not None:
                texts = len(step.slots)
                window[step.slots], state[step.slots] = (each[:texts] for each in last)
            return self.norm(step.segments.repack(y), step.segments.repack(z))
        assert step is not None
        y = self._ssm_decode(zxBCdt.transpose(0, 1), window[: step.count], state[: step.count])
        return y.transpose(0, 1)

    def _without_context_parallelism(self) -> Any:
        """This tensor-parallel rank's sizes and parameters for whole texts, which generation uses."""
        if self.cp.cp_size == 1:
            return self.cp
        one = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
        return upstream.MambaContextParallel(
            one,
            *(self.d_inner_local_tp, self.nheads_local_tp, self.ngroups_local_tp, self.d_state),
            *(self.conv1d, self.dt_bias, self.A_log, self.D, self.D_has_hdim),
        )

    def _parts(self, cp: Any) -> tuple[MixerShape, MixerWeights]:
        """Sizes and parameters of a rank; `cp` is upstream's view of its context-parallel part."""
        shape = MixerShape(cp.nheads_local_tpcp, self.headdim, cp.ngroups_local_tpcp, self.d_state)
        weights = MixerWeights(
            cp.get_conv1d_weight(), cp.get_conv1d_bias(), cp.get_dt_bias(), cp.get_A_log(), cp.get_D()
        )
        return shape, weights

    def _prefill(
        self, zxBCdt: Tensor, lengths: Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y and z `[seq, batch, inner]`, the last d_conv conv inputs `[batch, channels, d_conv]`, the last state.

        Args:
            lengths: `[batch]`, length of each text: the tokens after it do not affect the conv inputs and the state.
            before: the conv inputs and the state at the end of what each text continues; None: it continues nothing.
        """
        shape, weights = self._parts(self._without_context_parallelism())
        inner = shape.widths[0]
        z, xBC, dt = zxBCdt.split([inner, sum(shape.widths), shape.heads], -1)
        mask = (torch.arange(xBC.shape[0], device=lengths.device) < lengths[:, None])[..., None]
        if before is None:
            padded, carried = F.pad(xBC, (0, 0, 0, 0, self.d_conv, 0)), None
        else:
            padded, carried = torch.cat([before[0].permute(2, 0, 1), xBC]), before[1]
        y, state = convolve_and_scan(shape, padded[1:], dt, *weights.all(), state=carried, mask=mask)
        ends = lengths[:, None] + torch.arange(self.d_conv, device=lengths.device)
        channels_first = padded.permute(1, 2, 0)
        window = channels_first.gather(2, ends[:, None].expand(-1, channels_first.shape[1], -1))
        return y, z, window, state

    def _ssm_decode(
        self, zxBCdt: Tensor, conv_state: Tensor, ssm_state: Tensor, batch_indices: Tensor | None = None
    ) -> Tensor:
        """One token: zxBCdt `[1, batch, projection]` -> `[1, batch, inner]`; both states are updated in place."""
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
