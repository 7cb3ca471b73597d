"""The paper's objective (section 15), its relatives, and their gradients by autograd.

    J = E[ 1/sum_j |o_j| * sum_i sum_t  w_it * min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i) - beta KL_it ]
    A_i = (r_i - mean) / (std + eta)        r_it = pi / pi_old        w_it = min(pi_old / pi_sampler, C)

i runs over the answers of a group, t over the tokens of an answer. w is truncated importance sampling: it corrects for
a sampler whose probabilities differ slightly from the trainer's, and carries no gradient. It does not multiply the KL
term.

Everything here is arithmetic on tensors. The caller says which tokens belong to which answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_prism.rl.settings import Objective

# Bounds of differences of log-probabilities before they are exponentiated (open-instruct, grpo_fast.py at 2e01163ad).
KL_BOUND, TIS_BOUND, RATIO_BOUND = 40.0, 10.0, 40.0
# The metrics of `policy_loss`, each a sum over tokens.
METRICS = (
    "ratio",
    "clipped_low",
    "clipped_high",
    "tis_weight",
    "tis_capped",
    "kl",
    "negative_logprob",
    "moved",
)


def advantages(rewards: Tensor, objective: Objective) -> Tensor:
    """Advantage of each answer, `[groups, samples]` in fp64, from rewards of that shape.

    A group of equal rewards has advantages of exactly 0. The rounding error of its mean, divided by a standard
    deviation of the same size, would otherwise give large ones.

    Raises:
        ValueError: if a reward is not finite, or groups have only one answer.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("a reward is not a finite number")
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError("a group needs at least two answers")
    rewards = rewards.double()
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    centred = torch.where(equal, 0.0, rewards - rewards.mean(1, keepdim=True))
    if objective.advantage == "group_mean":
        return centred
    if objective.advantage == "leave_one_out":
        # r_i - mean of the others = (r_i - mean of all) * n / (n - 1)
        return centred * samples / (samples - 1)
    deviation = rewards.std(1, correction=0, keepdim=True) + objective.advantage_epsilon
    return torch.where(equal, 0.0, centred / deviation)


def token_weights(lengths: Tensor, objective: Objective, max_new_tokens: int) -> Tensor:
    """The weight of each token of an answer in the loss, which is a sum over all tokens; `[groups, samples]` in fp64.

    Args:
        lengths: tokens of each answer, `[groups, samples]`.
        max_new_tokens: the longest answer that could have been sampled; normalization 'constant' divides by it.

    Raises:
        ValueError: if an answer has no tokens, or more than `max_new_tokens` where these are the divisor.
    """
    if int(lengths.min()) < 1:
        raise ValueError("an answer has no tokens")
    if objective.normalization == "constant" and int(lengths.max()) > max_new_tokens:
        raise ValueError(
            f"an answer has {int(lengths.max())} tokens, more than max_new_tokens={max_new_tokens}"
        )
    sizes = lengths.double()
    if objective.normalization == "batch_tokens":
        return torch.ones_like(sizes) / sizes.sum()
    if objective.normalization == "sequence":
        return 1 / (sizes * sizes.numel())
    if objective.normalization == "constant":
        return torch.ones_like(sizes) / (sizes.numel() * max_new_tokens)
    return (1 / (sizes.sum(1, keepdim=True) * sizes.shape[0])).expand_as(sizes)


@dataclass
class LossInputs:
    """The tensors of `policy_loss`, each `[batch, seq]`. Where `mask` is 0 they may hold anything, NaN included.

    Attributes:
        logprobs: log-probabilities under the policy, with gradient.
        sampler_logprobs: as the sampler reported them.
        advantages, weights: per token; the weights carry all normalization (`token_weights`).
        mask: 1 for the tokens that count.
        old_logprobs: under the policy before the step; None on-policy, where they equal `logprobs` and the ratio is 1.
        reference_logprobs: under the reference; not needed if kl_coefficient is 0.
        sequence_log_ratio: for ratio='sequence', the log ratio of each token's answer (`sequence_log_ratio`).
    """

    logprobs: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    mask: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    sequence_log_ratio: Tensor | None = None


def policy_loss(inputs: LossInputs, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """-J over these tokens, and the sums of `METRICS` over them. Only `inputs.logprobs` gets a gradient.

    Raises:
        ValueError: if the objective needs the reference or the sequences' ratio and they are missing.
    """
    logprobs, advantages = inputs.logprobs, inputs.advantages
    counted = inputs.mask > 0

    def difference(left: Tensor, right: Tensor, bound: float) -> Tensor:
        # Masked tokens must not produce a NaN either: its gradient stays NaN even when multiplied by zero.
        return torch.where(counted, left - right, 0.0).clamp(-bound, bound)

    # Without detach, passing the policy's own log-probabilities as the old ones would cancel the gradient.
    old = (logprobs if inputs.old_logprobs is None else inputs.old_logprobs).detach()
    if objective.ratio == "sequence":
        if inputs.sequence_log_ratio is None:
            raise ValueError("ratio='sequence' needs sequence_log_ratio")
        # GSPO-token: the value is the answer's ratio, and the gradient of each token flows through its own.
        ratio = (
            inputs.sequence_log_ratio.clamp(-RATIO_BOUND, RATIO_BOUND).exp()
            * difference(logprobs, logprobs.detach(), RATIO_BOUND).exp()
        )
    else:
        ratio = difference(logprobs, old, RATIO_BOUND).exp()
    low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    correction = torch.ones_like(ratio)
    capped = torch.zeros_like(counted)
    if objective.tis_cap is not None:
        raw = difference(old, inputs.sampler_logprobs.detach(), TIS_BOUND).exp()
        correction, capped = raw.clamp(max=objective.tis_cap), raw > objective.tis_cap
    kl = torch.zeros_like(ratio)
    if objective.kl_coefficient:
        if inputs.reference_logprobs is None:
            raise ValueError(f"kl_coefficient={objective.kl_coefficient} needs reference_logprobs")
        reference = inputs.reference_logprobs.detach()
        kl = estimate_kl(difference(reference, logprobs, KL_BOUND), objective.kl_estimator)
    terms = correction * surrogate - objective.kl_coefficient * kl
    loss = -torch.where(counted, terms * inputs.weights, 0.0).sum()
    with torch.no_grad():
        moved = difference(logprobs.detach(), old, RATIO_BOUND)
        values: dict[str, Any] = {
            "ratio": ratio.detach(),
            "clipped_low": (ratio < low) & (advantages < 0),
            "clipped_high": (ratio > high) & (advantages > 0),
            "tis_weight": correction,
            "tis_capped": capped,
            "kl": kl.detach(),
            "negative_logprob": -logprobs.detach(),
            # KL(old || policy) by the k3 estimator: how far the policy has moved since the start of the step.
            "moved": moved.expm1() - moved,
        }
        sums = {name: torch.where(counted, values[name].float(), 0.0).sum() for name in METRICS}
    return loss, sums


def estimate_kl(log_ratio: Tensor, estimator: str) -> Tensor:
    """KL(policy || reference) per token from d = log reference - log policy at a token of the policy's."""
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return log_ratio.expm1() - log_ratio


def sequence_log_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, texts: Tensor, *, group: Any = None
) -> Tensor:
    """Mean over an answer's tokens of log pi - log pi_old, at each of its tokens; `[batch, seq]`, no gradient.

    Args:
        texts: which answer each token belongs to, numbered from 0.
        group: process group over whose ranks the answers' tokens are spread (context parallelism).
    """
    import torch.distributed as dist

    counted = mask > 0
    count = texts.max().long() + 1
    if group is not None and group.size() > 1:
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=group)
    sums = torch.zeros(2, int(count), dtype=torch.float64, device=logprobs.device)
    differences = torch.where(counted, (logprobs - old_logprobs).detach(), 0.0)
    sums[0].index_add_(0, texts.flatten(), differences.double().flatten())
    sums[1].index_add_(0, texts.flatten(), counted.double().flatten())
    if group is not None and group.size() > 1:
        dist.all_reduce(sums, group=group)
    means = sums[0] / sums[1].clamp(min=1)
    return means[texts].to(logprobs.dtype)
