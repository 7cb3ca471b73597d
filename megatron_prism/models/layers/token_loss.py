"""Cross entropy of the output layer, a few tokens at a time, so that the logits of all tokens never exist at once.

The logits of one row of 128k tokens over 128,256 tokens are 34 GB in bf16, and Megatron's cross entropy
(tensor_parallel/cross_entropy.py:38) keeps them in fp32 for backward. Here a chunk's logits are made, reduced to one
loss per token, and forgotten; backward makes them again and turns them into gradients. Small batches keep them instead,
which saves that product. Both give the same bits. Under tensor parallelism each rank has the logits of its part of the
vocabulary, and three numbers per token are reduced over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    _gather_along_first_dim,
    _reduce,
    _reduce_scatter_along_first_dim,
)
from torch import Tensor

# Bytes of a chunk's logits in fp32: what fits into a CPU's cache, or fills a GPU with one matrix product.
CACHED_BYTES = 2 * 2**20
DEVICE_BYTES = 512 * 2**20
# With fewer tokens, a product with a large vocabulary is slow, because it reads all weights for them.
FEWEST_TOKENS = 256
# Exponentials of at most this size are kept for backward.
KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Head:
    """What an output layer does besides its matrix product.

    Attributes:
        group: the tensor-parallel ranks; each has the same number of rows of the vocabulary, in order.
        sequence_parallel: whether each of these ranks has a part of the tokens.
        scaling: the logits are divided by it.
        limit: tokens of the vocabulary from this one on have probability 0; None: every token has a probability.
    """

    group: dist.ProcessGroup
    sequence_parallel: bool = False
    scaling: float = 1.0
    limit: int | None = None


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, head: Head) -> Tensor:
    """-log p(label) of every token, in fp32 (fp64 for fp64 weights).

    The gradient of the weight is complete only after DDP's hook: where Megatron's DDP has given the weight a
    `main_grad`, every chunk but the last is added to it directly.

    Args:
        hidden: `[seq, batch, hidden]`, this rank's part of seq under sequence parallelism.
        weight: `[vocabulary, hidden]`, this tensor-parallel rank's rows.
        labels: `[seq, batch]`, of the whole sequence.

    Returns:
        `[seq, batch]`.
    """
    losses: Tensor = _TokenLosses.apply(hidden, weight, labels, head, torch.is_grad_enabled())
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, head: Head, grad: bool) -> Tensor:
        tokens, rows = _whole(hidden, head), weight.shape[0]
        target = labels.reshape(-1) - head.group.rank() * rows
        elsewhere = (target < 0) | (target >= rows)
        target = target.masked_fill(elsewhere, 0)
        ctx.head, ctx.size = head, _chunk_size(weight)
        keep = grad and tokens.shape[0] * rows * _exact(weight).itemsize <= KEPT_BYTES
        kept, found = [], []
        for part, column in zip(tokens.split(ctx.size), target.split(ctx.size), strict=True):
            logits = _logits(part, weight, head)
            # A rank whose rows all lie beyond the limit has no finite logit.
            largest = logits.amax(-1).clamp_(min=torch.finfo(logits.dtype).min)
            logits.sub_(largest[:, None])
            label = logits.gather(1, column[:, None])[:, 0]
            exponentials = logits.exp_()
            found.append(torch.stack([largest, exponentials.sum(-1), label]))
            if keep:
                kept.append(exponentials)
        largest, total, label = torch.cat(found, 1)
        label.masked_fill_(elsewhere, 0.0)
        share = torch.ones_like(total)
        if head.group.size() > 1:
            shift = largest.clone()
            dist.all_reduce(shift, op=dist.ReduceOp.MAX, group=head.group)
            shift = largest - shift
            share = shift.exp()
            sums = torch.stack([total * share, torch.where(elsewhere, label, label + shift)])
            dist.all_reduce(sums, group=head.group)
            total, label = sums
        ctx.save_for_backward(hidden, weight, target, elsewhere, largest, share / total, *kept)
        return (total.log() - label).view(labels.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, elsewhere, largest, share, *kept = ctx.saved_tensors
        head, size = ctx.head, ctx.size
        tokens = _whole(hidden, head)
        # d loss / d logit = softmax - 1 at the label, times the gradient of the loss.
        grad = grads[0].reshape(-1).to(share.dtype) / head.scaling
        share, at_label = share * grad, grad.masked_fill(elsewhere, 0.0).neg_()
        d_tokens = torch.empty_like(tokens) if ctx.needs_input_grad[0] else None
        d_weight = _WeightGradient(weight) if ctx.needs_input_grad[1] else None
        for index, start in enumerate(range(0, tokens.shape[0], size)):
            span = slice(start, min(start + size, tokens.shape[0]))
            d_logits = kept[index] if kept else _logits(tokens[span], weight, head)
            if not kept:
                d_logits.sub_(largest[span, None]).exp_()
            d_logits.mul_(share[span, None])
            d_logits.scatter_add_(1, target[span, None], at_label[span, None])
            d_logits = d_logits.to(weight.dtype)
            if d_tokens is not None:
                torch.mm(d_logits, weight, out=d_tokens[span])
            if d_weight is not None:
                d_weight.add(d_logits, tokens[span], last=span.stop == tokens.shape[0])
        d_hidden = None
        if d_tokens is not None:
            reduce = _reduce_scatter_along_first_dim if head.sequence_parallel else _reduce
            d_hidden = reduce(d_tokens.view(-1, *hidden.shape[1:]), head.group)
        return d_hidden, None if d_weight is None else d_weight.result, None, None, None


class _WeightGradient:
    """The sum of `d_logits^T tokens` over chunks, without losing the digits of small terms in low precision."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.main: Tensor | None = getattr(weight, "main_grad", None)
        self.sum: Tensor | None = None
        self.result: Tensor | None = None

    def add(self, d_logits: Tensor, tokens: Tensor, last: bool) -> None:
        if last and self.sum is None:
            # DDP's hook adds it to `main_grad`.
            self.result = d_logits.t() @ tokens
            return
        if self.main is None and self.sum is None:
            self.sum = torch.zeros_like(self.weight, dtype=_exact(self.weight))
        target = self.main if self.sum is None else self.sum
        assert target is not None
        if target.dtype == d_logits.dtype:
            target.addmm_(d_logits.t(), tokens)
        else:
            target.add_(d_logits.t() @ tokens)
        if last:
            self.result = target.to(self.weight.dtype)


def _exact(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _whole(hidden: Tensor, head: Head) -> Tensor:
    """`[tokens, hidden]` of the whole sequence."""
    if head.sequence_parallel:
        hidden = _gather_along_first_dim(hidden, head.group)
    return hidden.reshape(-1, hidden.shape[-1])


def _logits(tokens: Tensor, weight: Tensor, head: Head) -> Tensor:
    """This rank's logits `[tokens, rows]`, rounded to the weight's precision, as a new tensor of at least fp32."""
    logits = torch.mm(tokens, weight.t()).to(_exact(weight))
    if head.scaling != 1.0:
        logits.div_(head.scaling)
    if head.limit is not None:
        logits[:, max(0, head.limit - head.group.rank() * weight.shape[0]) :] = float("-inf")
    return logits


def _chunk_size(weight: Tensor) -> int:
    """Tokens per chunk."""
    size = DEVICE_BYTES if weight.is_cuda else CACHED_BYTES
    return max(FEWEST_TOKENS, size // (weight.shape[0] * _exact(weight).itemsize))
