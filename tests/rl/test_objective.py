"""The objective against the paper's equation, written once more in plain Python, and its edges.

`expected` works on lists of floats, answer by answer and token by token, and derives the gradient by hand; it shares
nothing with the module but the settings.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
import warm

from megatron_prism.rl.objective import (
    METRICS,
    LossInputs,
    advantages,
    policy_loss,
    sequence_log_ratio,
    token_weights,
)
from megatron_prism.rl.settings import ADVANTAGES, ESTIMATORS, NORMALIZATIONS, RATIOS, Objective

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
MAX_NEW_TOKENS = 9


@dataclass
class Answer:
    """One answer: its reward and, per token, four log-probabilities and whether the token counts."""

    reward: float
    policy: list[float]
    old: list[float]
    sampler: list[float]
    reference: list[float]
    kept: list[bool]


Batch = list[list[Answer]]


def random_batch(seed: int, groups: int = 3, samples: int = 3, spread: float = 0.4) -> Batch:
    """Answers of 1 to 7 tokens; the ratios lie on both sides of every bound the tests use."""
    draw = random.Random(seed)

    def near(values: list[float], scale: float) -> list[float]:
        return [value + draw.gauss(0, scale) for value in values]

    def answer() -> Answer:
        policy = [-draw.uniform(0.05, 4) for _ in range(draw.randint(1, 7))]
        old = near(policy, spread)
        kept = [position == 0 or draw.random() < 0.85 for position in range(len(policy))]
        return Answer(draw.gauss(0, 1), policy, old, near(old, 2 * spread), near(policy, 2 * spread), kept)

    return [[answer() for _ in range(samples)] for _ in range(groups)]


def expected_advantages(rewards: list[float], kind: str, eta: float) -> list[float]:
    count, mean = len(rewards), sum(rewards) / len(rewards)
    if kind == "group_mean":
        return [reward - mean for reward in rewards]
    if kind == "leave_one_out":
        others = [[r for j, r in enumerate(rewards) if j != i] for i in range(count)]
        return [reward - sum(rest) / len(rest) for reward, rest in zip(rewards, others, strict=True)]
    variance = sum((reward - mean) ** 2 for reward in rewards) / count
    return [(reward - mean) / (math.sqrt(variance) + eta) for reward in rewards]


def expected(batch: Batch, o: Objective) -> tuple[float, list[list[list[float]]], dict[str, float]]:
    """-J, its derivative by every token's log-probability (0 for tokens left out), and the metrics."""
    loss, gradients = 0.0, [[[0.0] * len(answer.policy) for answer in group] for group in batch]
    counts = dict.fromkeys(METRICS, 0.0)
    answers = sum(len(group) for group in batch)
    all_tokens = sum(len(answer.policy) for group in batch for answer in group)
    for g, group in enumerate(batch):
        scaled = expected_advantages([answer.reward for answer in group], o.advantage, o.advantage_epsilon)
        group_tokens = sum(len(answer.policy) for answer in group)
        for i, (answer, a) in enumerate(zip(group, scaled, strict=True)):
            divisor = {
                "group_tokens": group_tokens * len(batch),
                "batch_tokens": all_tokens,
                "sequence": len(answer.policy) * answers,
                "constant": MAX_NEW_TOKENS * answers,
            }[o.normalization]
            steps = [p - q for p, q, kept in zip(answer.policy, answer.old, answer.kept, strict=True) if kept]
            for t, kept in enumerate(answer.kept):
                if not kept:
                    continue
                p = answer.policy[t]
                exponent = p - answer.old[t] if o.ratio == "token" else sum(steps) / len(steps)
                r = math.exp(exponent)
                low, high = 1 - o.epsilon_low, 1 + o.epsilon_high
                # The clipped term is chosen, and has no gradient, where the ratio already moved past the bound.
                clipped_high, clipped_low = a > 0 and r > high, a < 0 and r < low
                gain = a * (high if clipped_high else low if clipped_low else r)
                gain_slope = 0.0 if clipped_high or clipped_low else a * r
                raw = math.exp(answer.old[t] - answer.sampler[t]) if o.tis_cap is not None else 1.0
                w = raw if o.tis_cap is None else min(raw, o.tis_cap)
                q = answer.reference[t]
                kl = {"k1": p - q, "k2": (p - q) ** 2 / 2, "k3": math.exp(q - p) - 1 - (q - p)}[
                    o.kl_estimator
                ]
                kl_slope = {"k1": 1.0, "k2": p - q, "k3": 1 - math.exp(q - p)}[o.kl_estimator]
                loss -= (w * gain - o.kl_coefficient * kl) / divisor
                gradients[g][i][t] = -(w * gain_slope - o.kl_coefficient * kl_slope) / divisor
                moved = p - answer.old[t]
                for name, value in {
                    "ratio": r,
                    "clipped_low": clipped_low,
                    "clipped_high": clipped_high,
                    "tis_weight": w,
                    "tis_capped": o.tis_cap is not None and raw > o.tis_cap,
                    "kl": kl if o.kl_coefficient else 0.0,
                    "negative_logprob": -p,
                    "moved": math.exp(moved) - 1 - moved,
                }.items():
                    counts[name] += value
    return loss, gradients, counts


class Laid:
    """A batch as tensors, a row per group, its answers apart; what is not an answer's holds `junk`."""

    def __init__(self, batch: Batch, o: Objective, dtype=torch.float64, junk: float = math.nan) -> None:
        rewards = torch.tensor([[answer.reward for answer in group] for group in batch], dtype=dtype)
        lengths = torch.tensor([[len(answer.policy) for answer in group] for group in batch])
        scaled, weights = advantages(rewards, o), token_weights(lengths, o, MAX_NEW_TOKENS)
        width = max(sum(len(answer.policy) + 2 for answer in group) for group in batch) + 1
        shape = (len(batch), width)
        names = ("policy", "old", "sampler", "reference", "advantages", "weights")
        self.values = {name: torch.full(shape, junk, dtype=torch.float64) for name in names}
        self.mask, self.texts = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
        self.places: list[list[slice]] = []
        for g, group in enumerate(batch):
            start, row = 0, []
            for i, answer in enumerate(group):
                start += 2  # a prompt of two tokens
                place = slice(start, start + len(answer.policy))
                kept = torch.tensor(answer.kept)
                self.mask[g, place], self.texts[g, place] = kept.float(), g * len(group) + i
                for name in names[:4]:
                    full = torch.tensor(getattr(answer, name), dtype=torch.float64)
                    self.values[name][g, place] = torch.where(kept, full, junk)
                for name, of in (("advantages", scaled), ("weights", weights)):
                    self.values[name][g, place] = torch.where(kept, of[g, i].double(), junk)
                row.append(place)
                start = place.stop
            self.places.append(row)
        self.values = {name: value.to(dtype) for name, value in self.values.items()}

    def loss(self, o: Objective, policy: torch.Tensor | None = None, **changes: torch.Tensor | None):
        given = self.values | changes
        policy = given["policy"] if policy is None else policy
        ratio = None
        if o.ratio == "sequence":
            before = policy if given["old"] is None else given["old"]
            ratio = sequence_log_ratio(policy, before, self.mask, self.texts)
        inputs = LossInputs(
            logprobs=policy,
            sampler_logprobs=given["sampler"],
            advantages=given["advantages"],
            weights=given["weights"],
            mask=self.mask,
            old_logprobs=given["old"],
            reference_logprobs=given["reference"],
            sequence_log_ratio=ratio,
        )
        return policy_loss(inputs, o)


def check(batch: Batch, o: Objective, dtype=torch.float64) -> None:
    laid = Laid(batch, o, dtype)
    policy = laid.values["policy"].clone().requires_grad_()
    loss, metrics = laid.loss(o, policy)
    loss.backward()
    wanted, slopes, counts = expected(batch, o)
    torch.testing.assert_close(loss.item(), wanted, **CLOSE)
    assert policy.grad is not None
    all_slopes = torch.zeros(policy.shape, dtype=dtype)
    for g, row in enumerate(laid.places):
        for i, place in enumerate(row):
            all_slopes[g, place] = torch.tensor(slopes[g][i], dtype=dtype)
    torch.testing.assert_close(policy.grad, all_slopes, **CLOSE)
    assert list(metrics) == list(METRICS)
    for name in METRICS:
        torch.testing.assert_close(metrics[name].item(), counts[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_loss_gradient_and_metrics_are_the_equations(normalization, advantage, ratio, dtype):
    for seed, (estimator, cap, beta) in enumerate(product(ESTIMATORS, (None, 1.3), (0.0, 0.7))):
        o = Objective(
            epsilon_low=0.1,
            epsilon_high=0.25,
            tis_cap=cap,
            kl_coefficient=beta,
            kl_estimator=estimator,
            ratio=ratio,
            normalization=normalization,
            advantage=advantage,
            advantage_epsilon=0.01,
        )
        check(random_batch(seed), o, dtype)


def test_the_batches_reach_every_branch():
    counts = [expected(random_batch(seed), Objective(tis_cap=1.3))[2] for seed in range(12)]
    assert all(
        sum(count[name] for count in counts) > 20 for name in ("clipped_low", "clipped_high", "tis_capped")
    )


def test_expected_gradients_are_differences_of_expected_losses():
    """The reference checks itself: its derivatives by hand agree with finite differences of its loss."""
    o = Objective(kl_coefficient=0.3, kl_estimator="k3", tis_cap=1.3)
    batch = random_batch(5, groups=2)
    slopes = expected(batch, o)[1]
    for g, group in enumerate(batch):
        for i, answer in enumerate(group):
            for t, before in enumerate(answer.policy):
                ends = []
                for step in (1e-6, -1e-6):
                    answer.policy[t] = before + step
                    ends.append(expected(batch, o)[0])
                answer.policy[t] = before
                assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slopes[g][i][t], abs=1e-7)


def test_the_sequence_ratio_has_gspos_gradient():
    """GSPO defines one ratio per answer; its token form has the same gradient."""
    o = Objective(ratio="sequence", normalization="sequence", tis_cap=None, kl_coefficient=0.0)
    batch = random_batch(3)
    laid = Laid(batch, o)
    policy = laid.values["policy"].clone().requires_grad_()
    laid.loss(o, policy)[0].backward()

    def gspo() -> float:
        total = 0.0
        for group in batch:
            scaled = expected_advantages(
                [answer.reward for answer in group], o.advantage, o.advantage_epsilon
            )
            for answer, a in zip(group, scaled, strict=True):
                pairs = zip(answer.policy, answer.old, answer.kept, strict=True)
                steps = [p - q for p, q, kept in pairs if kept]
                s = math.exp(sum(steps) / len(steps))
                kept_share = len(steps) / len(answer.policy)
                total += min(s * a, min(max(s, 0.8), 1.2) * a) * kept_share
        return -total / sum(len(group) for group in batch)

    assert laid.loss(o)[0].item() == pytest.approx(gspo(), abs=1e-12)
    for g, group in enumerate(batch):
        for i, answer in enumerate(group):
            for t, before in enumerate(answer.policy):
                ends = []
                for step in (1e-6, -1e-6):
                    answer.policy[t] = before + step
                    ends.append(gspo())
                answer.policy[t] = before
                slope = policy.grad[g, laid.places[g][i]][t].item()
                assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradient_through_a_softmax(ratio):
    """d loss / d logit = slope of the token's log-probability times (1 for the token's own logit, less p)."""
    o = Objective(ratio=ratio, kl_coefficient=0.3)
    batch, vocabulary = random_batch(7), 5
    laid = Laid(batch, o)
    torch.manual_seed(0)
    logits = torch.randn(*laid.mask.shape, vocabulary, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(vocabulary, laid.mask.shape)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    for g, row in enumerate(laid.places):
        for i, place in enumerate(row):
            batch[g][i].policy = logprobs[g, place].tolist()
    loss, _ = laid.loss(o, logprobs)
    loss.backward()
    wanted, slopes, _ = expected(batch, o)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    by_hand = torch.zeros_like(logits)
    for g, row in enumerate(laid.places):
        for i, place in enumerate(row):
            for t, position in enumerate(range(place.start, place.stop)):
                weights = [math.exp(each) for each in logits[g, position].tolist()]
                for v in range(vocabulary):
                    own = 1.0 if v == tokens[g, position] else 0.0
                    by_hand[g, position, v] = slopes[g][i][t] * (own - weights[v] / sum(weights))
    torch.testing.assert_close(logits.grad, by_hand, **CLOSE)


@pytest.mark.parametrize("ratio", RATIOS)
def test_without_old_logprobs_the_ratio_is_one_and_its_gradient_is_not_zero(ratio):
    o = Objective(ratio=ratio)
    batch = random_batch(2)
    for answer in (answer for group in batch for answer in group):
        answer.old = list(answer.policy)
    laid = Laid(batch, o)
    wanted, slopes, _ = expected(batch, o)
    # Passing the policy's own tensor as old log-probabilities must not cancel the gradient.
    for old in ("absent", "the same"):
        policy = laid.values["policy"].clone().requires_grad_()
        loss, metrics = laid.loss(o, policy, old=None if old == "absent" else policy)
        loss.backward()
        assert loss.item() == pytest.approx(wanted, abs=1e-12)
        assert metrics["ratio"].item() == laid.mask.sum().item()
        assert metrics["moved"].item() == 0
        assert policy.grad[0, laid.places[0][0]].tolist() == pytest.approx(slopes[0][0], abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_low": 0.01},
        {"epsilon_high": 0.01},
        {"tis_cap": 1.1},
        {"tis_cap": None},
        {"kl_coefficient": 0.051},
        {"kl_estimator": "k1"},
        {"kl_estimator": "k2"},
        {"ratio": "sequence"},
        {"normalization": "batch_tokens"},
        {"normalization": "sequence"},
        {"normalization": "constant"},
        {"advantage": "group_mean"},
        {"advantage": "leave_one_out"},
        {"advantage_epsilon": 0.01},
    ],
    ids=str,
)
def test_every_setting_moves_the_loss(change):
    batch, usual = random_batch(11), Objective()
    changed = replace(usual, **change)
    before, after = (Laid(batch, o).loss(o)[0].item() for o in (usual, changed))
    assert abs(before - after) > 1e-5


@pytest.mark.parametrize("name", ["policy", "old", "sampler", "reference", "advantages", "weights"])
def test_every_input_moves_the_loss(name):
    o = Objective()
    laid = Laid(random_batch(4), o)
    assert abs(laid.loss(o)[0] - laid.loss(o, **{name: laid.values[name] * 1.1})[0]) > 1e-6


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_masked_has_no_effect(junk, ratio, estimator):
    o = Objective(ratio=ratio, kl_estimator=estimator)
    results = []
    for filled in (0.0, junk):
        laid = Laid(random_batch(6), o, junk=filled)
        policy = laid.values["policy"].clone().requires_grad_()
        loss, metrics = laid.loss(o, policy)
        loss.backward()
        assert (policy.grad[laid.mask == 0] == 0).all()
        results.append((loss, policy.grad, *metrics.values()))
    for clean, dirty in zip(*results, strict=True):
        assert torch.isfinite(dirty).all()
        assert torch.equal(clean, dirty)


def test_a_small_step_is_measured():
    """exp(d) - d - 1 is 5e-9 for a step of 1e-4: less than the rounding error in fp32."""
    ones = torch.ones(1, 1)
    o = Objective(kl_coefficient=1.0)
    inputs = LossInputs(
        logprobs=1e-4 * ones,
        old_logprobs=0 * ones,
        sampler_logprobs=0 * ones,
        reference_logprobs=2e-4 * ones,
        advantages=ones,
        weights=ones,
        mask=ones,
    )
    _, metrics = policy_loss(inputs, o)
    assert metrics["moved"].item() == pytest.approx(5e-9, rel=1e-2)
    assert metrics["kl"].item() == pytest.approx(5e-9, rel=1e-2)


def test_huge_differences_stay_finite():
    """exp(200) is infinite in fp32: the bounds keep one such token from ending the run."""
    o = Objective(kl_coefficient=0.05)
    batch = random_batch(1)
    for answer in batch[0]:
        answer.old[0], answer.reference[0] = answer.policy[0] - 200, answer.policy[0] + 200
    laid = Laid(batch, o, torch.float32)
    policy = laid.values["policy"].clone().requires_grad_()
    loss, metrics = laid.loss(o, policy)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(policy.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_loss_of_a_batch_is_the_sum_of_its_pieces(ratio):
    """Micro-batches and ranks each compute a part; the sum of the parts is the loss of the whole batch."""
    o = Objective(ratio=ratio)
    laid = Laid(random_batch(8), o)
    whole, metrics = laid.loss(o)
    parts = []
    for row in range(len(laid.places)):
        part = Laid.__new__(Laid)
        part.values = {name: value[row : row + 1] for name, value in laid.values.items()}
        part.mask, part.texts = laid.mask[row : row + 1], laid.texts[row : row + 1]
        parts.append(part.loss(o))
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    for name in METRICS:
        torch.testing.assert_close(sum(sums[name] for _, sums in parts), metrics[name])


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("eta", [0.0, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_of_equal_rewards_gives_no_gradient(kind, eta, dtype):
    # 0.1 * 3 / 3 is not 0.1 in binary.
    rewards = torch.tensor([[0.1, 0.1, 0.1], [1.0, 0.0, 0.0]], dtype=dtype)
    found = advantages(rewards, Objective(advantage=kind, advantage_epsilon=eta))
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == pytest.approx(expected_advantages([1.0, 0.0, 0.0], kind, eta), rel=1e-7)


def _ratio_of_a_part(policy, old, mask, texts, into: str) -> None:
    import torch.distributed as dist

    rank = dist.get_rank()
    # Context parallelism gives rank 0 the outer quarters of a row and rank 1 the inner ones.
    cut = [
        torch.cat(list(t.chunk(4, 1)[rank : 4 - rank : 3 - 2 * rank]), 1) for t in (policy, old, mask, texts)
    ]
    torch.save(sequence_log_ratio(*cut, group=dist.group.WORLD), f"{into}{rank}")


def test_the_sequence_ratio_counts_all_tokens_of_an_answer_that_ranks_share(tmp_path):
    torch.manual_seed(0)
    policy, old = torch.randn(2, 2, 8)
    # Answers cross the cuts, and the last text lies on one rank only.
    texts = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [3, 3, 3, 3, 3, 3, 4, 4]])
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 0, 1]]).float()
    # The results are arrays, because tensors would be passed in shared memory.
    warm.ranks(_ratio_of_a_part, policy, old, mask, texts, str(tmp_path / "part"), world=2)
    outer, inner = (torch.load(tmp_path / f"part{rank}") for rank in (0, 1))
    together = torch.cat([outer[:, :2], inner, outer[:, 2:]], 1)
    by_hand = torch.zeros(2, 8)
    for text in range(5):
        own = (texts == text) & (mask > 0)
        by_hand[texts == text] = (policy - old)[own].mean()
    torch.testing.assert_close(together[mask > 0], by_hand[mask > 0])
    torch.testing.assert_close(together, sequence_log_ratio(policy, old, mask, texts))


def test_advantages_of_whole_numbers():
    assert advantages(torch.tensor([[1, 0], [3, 1]]), Objective(advantage="group_mean")).tolist() == [
        [0.5, -0.5],
        [1.0, -1.0],
    ]
