"""The products of the Mamba-2 scan (ssd.py) over chunks, with a backward pass of its own.

Autograd's backward pass copies most of these tensors into another order before each product. Here every tensor is made
once, in the order in which the products read it. Names of dimensions: batch, n chunks, groups, ratio = heads per group,
chunk, dim = channels per head, size = size of the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scan_chunks(
    chunk: int, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scan of whole chunks; arguments and results as in `ssd.ssd_scan`.

    Args:
        chunk: divides the length of the sequence.
    """
    y, last = _ScanChunks.apply(chunk, x, dt, A, B, C, D, state)
    return y, last


class _ScanChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chunk: int,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        batch, length, heads, dim = x.shape
        groups, size = B.shape[2:]
        n, ratio = length // chunk, heads // groups
        tokens = _by_token(x.float(), n, groups)
        # [batch, n, groups, ratio, chunk]
        step = _by_token(dt, n, groups).permute(0, 1, 3, 4, 2).contiguous()
        # Differences of this sum lose digits in fp32 at long chunks: keep it in fp64.
        total = torch.cumsum((step * A.view(groups, ratio, 1)).double(), dim=-1)
        keys, queries = (_by_group(each, n) for each in (B, C))
        values = x.new_empty(batch, n, groups, ratio, chunk, dim, dtype=torch.float32)
        torch.mul(tokens.permute(0, 1, 3, 4, 2, 5), step[..., None], out=values)

        future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
        decay = x.new_empty(batch, n, groups, ratio, chunk, chunk, dtype=torch.float32)
        torch.sub(total[..., :, None], total[..., None, :], out=decay)
        decay.masked_fill_(future, float("-inf")).exp_()
        scores = (queries @ keys.transpose(-1, -2))[:, :, :, None] * decay
        inside = scores @ values

        to_end = (total[..., -1:] - total).float().exp()
        # [batch, n, groups, chunk, ratio * dim]: what each token adds to the state at the end of its chunk
        ended = values.new_empty(batch, n, groups, chunk, ratio, dim)
        torch.mul(tokens.transpose(2, 3), (step * to_end).transpose(-1, -2)[..., None], out=ended)
        ended = ended.flatten(-2)
        added = ended.transpose(-1, -2) @ keys
        # [batch, n, groups, ratio, 1, 1]
        kept = total[..., -1].float().exp()[..., None, None]
        states = torch.empty_like(added)
        last = torch.empty_like(added[:, 0])
        states[:, 0] = 0.0 if state is None else state.view_as(last)
        heads_of = (groups, ratio, dim, size)
        for index in range(n):
            torch.addcmul(
                added[:, index].view(batch, *heads_of),
                kept[:, index],
                states[:, index].view(batch, *heads_of),
                out=(states[:, index + 1] if index + 1 < n else last).view(batch, *heads_of),
            )
        outside = queries @ states.transpose(-1, -2)
        # In memory the tokens come first, as in the layers around the scan.
        y = values.new_empty(length, batch, heads, dim).transpose(0, 1)
        y_tokens = _by_token(y, n, groups)
        grown = total.float().exp()
        torch.mul(_heads_apart(outside, ratio).transpose(2, 3), _per_token(grown), out=y_tokens)
        y_tokens.add_(inside.permute(0, 1, 4, 2, 3, 5))
        y_tokens.addcmul_(tokens, D.float().view(groups, ratio, 1))
        ctx.has_state = state is not None
        ctx.save_for_backward(
            x, step, total, A, D, keys, queries, values, decay, scores, ended, states, outside
        )
        return y.to(x.dtype), last.view(batch, heads, dim, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, step, total, A, D, keys, queries, values, decay, scores, ended, states, outside = ctx.saved_tensors
        batch, n, groups, ratio, chunk, dim = values.shape
        tokens, d_y = (_by_token(each.float(), n, groups) for each in (x, grads[0]))
        to_end, grown = (total[..., -1:] - total).float().exp(), total.float().exp()
        kept = total[..., -1].float().exp()[..., None, None]

        # outside = queries @ states^T, times exp(total)
        d_outside = torch.empty_like(ended).unflatten(-1, (ratio, dim))
        torch.mul(d_y.transpose(2, 3), grown.transpose(-1, -2)[..., None], out=d_outside)
        d_outside = d_outside.flatten(-2)
        d_queries = d_outside @ states
        d_states = d_outside.transpose(-1, -2) @ queries
        d_total = _heads_apart(d_outside.mul_(outside), ratio).sum(-1)

        # states[i + 1] = kept[i] * states[i] + added[i]
        d_added = torch.empty_like(states)
        d_added[:, n - 1] = grads[1].reshape(d_added[:, 0].shape)
        d_state = torch.empty_like(d_added[:, 0])
        heads_of = (batch, groups, ratio, dim, states.shape[-1])
        for index in reversed(range(n)):
            torch.addcmul(
                d_states[:, index].view(heads_of),
                kept[:, index],
                d_added[:, index].view(heads_of),
                out=(d_added[:, index - 1] if index else d_state).view(heads_of),
            )
        d_kept = (d_added * states).unflatten(3, (ratio, dim)).sum((-1, -2))

        # added = ended^T @ keys; ended = x * step * exp(total at the end - total)
        d_keys = ended @ d_added
        d_ended = keys @ d_added.transpose(-1, -2)
        d_exponent = _heads_apart(d_ended * ended, ratio).sum(-1)
        d_total = (d_total - d_exponent).transpose(-1, -2).contiguous()
        d_total[..., -1] += d_exponent.sum(-2) + d_kept * kept[..., 0, 0]

        # inside = (queries @ keys^T * decay) @ values
        d_inside = d_y.permute(0, 1, 3, 4, 2, 5).contiguous()
        d_scores = d_inside @ values.transpose(-1, -2)
        d_values = scores.transpose(-1, -2) @ d_inside
        d_exponents = d_scores * scores
        d_total += d_exponents.sum(-1) - d_exponents.sum(-2)
        d_products = d_scores.mul_(decay).sum(3)
        d_queries += d_products @ keys
        d_keys += d_products.transpose(-1, -2) @ queries

        # values = x * step; `total` is the running sum of step * A
        d_x = values.new_empty(n * chunk, batch, groups * ratio, dim).transpose(0, 1)
        d_tokens = _by_token(d_x, n, groups)
        torch.mul(_heads_apart(d_ended, ratio).transpose(2, 3), _per_token(to_end), out=d_tokens)
        d_tokens.add_(d_values.permute(0, 1, 4, 2, 3, 5))
        d_step = (d_tokens * tokens).sum(-1).permute(0, 1, 3, 4, 2)
        d_tokens.mul_(_per_token(step)).addcmul_(d_y, D.float().view(groups, ratio, 1))
        d_D = (d_y * tokens).sum(-1).sum((0, 1, 2)).flatten()
        d_decay = d_total.double().flip(-1).cumsum(-1).flip(-1)
        d_A = (d_decay * step).sum((0, 1, 4)).flatten()
        d_step = d_step + (d_decay * A.view(groups, ratio, 1)).float()
        d_dt = d_step.permute(0, 1, 4, 2, 3).reshape(batch, n * chunk, groups * ratio)
        d_B, d_C = (
            each.transpose(2, 3).reshape(batch, n * chunk, groups, -1).to(x.dtype)
            for each in (d_keys, d_queries)
        )
        d_first = d_state.view(batch, groups * ratio, dim, -1) if ctx.has_state else None
        return None, d_x.to(x.dtype), d_dt, d_A.to(A.dtype), d_B, d_C, d_D.to(D.dtype), d_first


def _by_token(x: Tensor, n: int, groups: int) -> Tensor:
    """A view `[batch, n, chunk, groups, ratio, ...]` of `[batch, seq, heads, ...]`."""
    return x.unflatten(1, (n, -1)).unflatten(3, (groups, -1))


def _by_group(x: Tensor, n: int) -> Tensor:
    """`[batch, n, groups, chunk, size]` in fp32 from `[batch, seq, groups, size]`."""
    return x.unflatten(1, (n, -1)).transpose(2, 3).float().contiguous()


def _heads_apart(x: Tensor, ratio: int) -> Tensor:
    """A view `[..., ratio, dim]` of `[..., ratio * dim]`."""
    return x.unflatten(-1, (ratio, -1))


def _per_token(factor: Tensor) -> Tensor:
    """A view `[batch, n, chunk, groups, ratio, 1]` of `[batch, n, groups, ratio, chunk]`."""
    return factor.permute(0, 1, 4, 2, 3)[..., None]
