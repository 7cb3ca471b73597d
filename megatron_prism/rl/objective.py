"""The paper's objective (section 15), its relatives, and their gradients by autograd.

    J = E[ 1/sum_j |o_j| * sum_i sum_t  w_it * min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i) - beta KL_it ]
    A_i = (r_i - mean) / (std + eta)        r_it = pi / pi_old        w_it = min(pi_old / pi_sampler, C)

i runs over the answers of a group, t over the tokens of an answer. w is truncated importance sampling: it corrects for
a sampler whose probabilities are not quite the trainer's, and carries no gradient. The KL term is not multiplied by it.

Everything here is arithmetic on tensors; what is a token of which answer is the caller's to say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_prism.rl.settings import Objective

# Bounds of differences of log-probabilities before they are exponentiated (open-instruct, grpo_fast.py at 2e01163ad).
KL_BOUND, TIS_BOUND, RATIO_BOUND = 40.0, 10.0, 40.0
# What `policy_loss` reports, as sums over tokens.
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

    A group of equal rewards has advantages of exactly 0: rounding of its mean, divided by as small a deviation, would
    make large ones.

    Raises:
        ValueError: if a reward is not finite, or a group has one answer only.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("a reward is not a finite number")
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError("a group of one answer has nothing to compare it with")
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


def token_weights(lengths: Tensor, objective: Objective, most_tokens: int) -> Tensor:
    """What each token of an answer weighs in the sum over all tokens, `[groups, samples]` in fp64.

    Args:
        lengths: tokens of each answer, `[groups, samples]`.
        most_tokens: the longest an answer could have been.

    Raises:
        ValueError: if an answer has no tokens, or, where `most_tokens` is used, more than those.
    """
    if int(lengths.min()) < 1:
        raise ValueError("an answer without tokens")
    if objective.normalization == "constant" and int(lengths.max()) > most_tokens:
        raise ValueError(f"an answer of {int(lengths.max())} tokens, of at most {most_tokens}")
    sizes = lengths.double()
    if objective.normalization == "batch_tokens":
        return torch.ones_like(sizes) / sizes.sum()
    if objective.normalization == "sequence":
        return 1 / (sizes * sizes.numel())
    if objective.normalization == "constant":
        return torch.ones_like(sizes) / (sizes.numel() * most_tokens)
    return (1 / (sizes.sum(1, keepdim=True) * sizes.shape[0])).expand_as(sizes)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    sampler_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    mask: Tensor,
    objective: Objective,
    sequence_log_ratio: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-J of these tokens, and sums of `METRICS` over them. Every tensor is `[batch, seq]`.

    Only `logprobs` gets a gradient. What any tensor holds where the mask is 0 has no effect, not even NaN.

    Args:
        logprobs: of the policy, with gradient.
        old_logprobs: of the policy before the step; None is on-policy: they are `logprobs`, and the ratio is 1.
        sampler_logprobs: as the sampler reported them.
        reference_logprobs: needed unless kl_coefficient is 0.
        advantages, weights: per token; the weights of a batch (`token_weights`) carry all normalization.
        mask: 1 for tokens that count.
        sequence_log_ratio: of each token's answer (`sequence_log_ratio`), for ratio='sequence'.

    Raises:
        ValueError: if the reference or the sequences' ratio is missing where the objective needs it.
    """
    counted = mask > 0

    def difference(left: Tensor, right: Tensor, bound: float) -> Tensor:
        # What does not count must not make a NaN either: its gradient would be one, whatever it is multiplied by.
        return torch.where(counted, left - right, 0.0).clamp(-bound, bound)

    # Detached in any case: given as they are, the policy's own log-probabilities would cancel its gradient.
    old = (logprobs if old_logprobs is None else old_logprobs).detach()
    if objective.ratio == "sequence":
        if sequence_log_ratio is None:
            raise ValueError("ratio='sequence' needs sequence_log_ratio")
        # GSPO-token: the answer's ratio in value, and through each token its own gradient.
        ratio = (
            sequence_log_ratio.clamp(-RATIO_BOUND, RATIO_BOUND).exp()
            * difference(logprobs, logprobs.detach(), RATIO_BOUND).exp()
        )
    else:
        ratio = difference(logprobs, old, RATIO_BOUND).exp()
    low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    correction = torch.ones_like(ratio)
    capped = torch.zeros_like(counted)
    if objective.tis_cap is not None:
        raw = difference(old, sampler_logprobs.detach(), TIS_BOUND).exp()
        correction, capped = raw.clamp(max=objective.tis_cap), raw > objective.tis_cap
    kl = torch.zeros_like(ratio)
    if objective.kl_coefficient:
        if reference_logprobs is None:
            raise ValueError(f"kl_coefficient={objective.kl_coefficient} needs reference_logprobs")
        kl = estimate_kl(difference(reference_logprobs.detach(), logprobs, KL_BOUND), objective.kl_estimator)
    terms = correction * surrogate - objective.kl_coefficient * kl
    loss = -torch.where(counted, terms * weights, 0.0).sum()
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
            # KL(old || policy), by the k3 estimator: how far the step has gone.
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
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, texts: Tensor, group: Any = None
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
