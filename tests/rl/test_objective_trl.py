"""The objective against TRL's GRPOTrainer, for the settings both have: the same loss, the same gradient of each weight.

TRL computes its log-probabilities and its loss by its own code (`_compute_loss`) from a model and a batch; here the
log-probabilities come from the same model, and the loss from `rl/objective.py`. Known differences, and what is done:

- TRL divides advantages by the unbiased standard deviation plus 1e-4, this module by the population's plus eta: the
  losses are compared from given advantages, and the advantages apart, with the factor between them.
- TRL truncates importance weights where it samples (`_generate_and_score_completions`, with vLLM), and multiplies by
  them in `_compute_loss`; the test hands it the truncated weights.
- With a sequence's ratio and token-wise importance weights the values agree and the gradients do not: TRL lets the
  gradient flow through the mean over the answer, this module (as GSPO-token, arXiv 2507.18071) through each token with
  its own weight. Without importance weights the two are the same.
- TRL multiplies the KL term by the ratio unless told not to (`use_bias_correction_kl=False`).
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

from megatron_prism.rl.objective import (
    LossInputs,
    Objective,
    advantages,
    policy_loss,
    sequence_log_ratio,
    token_weights,
)

pytest.importorskip("trl", reason="needs TRL, of the extra 'dev'")

from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

GROUPS, SAMPLES, PROMPT, TOKENS, MAX_NEW_TOKENS = 2, 3, 4, 6, 9
CAP = 1.3
NORMALIZATION = {
    "grpo": "sequence",
    "bnpo": "batch_tokens",
    "dapo": "batch_tokens",
    "dr_grpo": "constant",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    path = tmp_path_factory.mktemp("trl")
    LlamaForCausalLM(config).save_pretrained(path / "model")
    words = models.WordLevel({f"w{n}": n for n in range(32)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="w1", pad_token="w2", padding_side="left"
    )
    tokenizer.save_pretrained(path / "model")
    return path


def trainer(folder, rewards=(0.0,), **settings) -> GRPOTrainer:
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    config = GRPOConfig(
        str(folder / "out"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=GROUPS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=MAX_NEW_TOKENS,
        use_bias_correction_kl=False,
        **settings,
    )
    made = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: list(rewards)[: len(completions)],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4"] * GROUPS}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "model"),
    )
    made.current_gradient_accumulation_steps = 1
    return made


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, answers of 1 to `TOKENS` tokens, and what moves ratios past every bound."""
    rng = torch.Generator().manual_seed(seed)
    rows = GROUPS * SAMPLES
    lengths = torch.tensor([6, 2, 4, 1, 5, 3])
    started = torch.tensor([0, 0, 0, 2, 2, 2])
    return {
        "prompt_ids": torch.randint(3, 32, (rows, PROMPT), generator=rng),
        "prompt_mask": (torch.arange(PROMPT) >= started[:, None]).long(),
        "completion_ids": torch.randint(3, 32, (rows, TOKENS), generator=rng),
        "completion_mask": (torch.arange(TOKENS) < lengths[:, None]).long(),
        "advantages": torch.randn(rows, generator=rng),
        # Apart for the answer as a whole, too: the mean over a sequence must pass the bounds as a token does.
        "noise": torch.randn(3, rows, 1, generator=rng) + torch.randn(3, rows, TOKENS, generator=rng),
        "num_items_in_batch": lengths.sum(),
    }


def logprobs(model, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the answers' tokens, `[rows, TOKENS]`, by transformers alone."""
    ids = torch.cat([given["prompt_ids"], given["completion_ids"]], 1)
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1]
    return logits.log_softmax(-1).gather(-1, given["completion_ids"][..., None])[..., 0]


def with_logprobs(model, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        policy = logprobs(model, given)
    old, sampler, reference = policy + 0.3 * given["noise"]
    return given | {
        "old_per_token_logps": old,
        "sampler": sampler,
        "ref_per_token_logps": reference,
        "importance_sampling_ratio": (old - sampler).exp().clamp(max=CAP),
    }


def ours(model, given: dict[str, torch.Tensor], o: Objective) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy, mask = logprobs(model, given), given["completion_mask"].float()
    old = given["old_per_token_logps"]
    weights = token_weights(mask.sum(1).long().view(GROUPS, SAMPLES), o, MAX_NEW_TOKENS).float()
    texts = torch.arange(len(policy))[:, None].expand_as(policy)
    inputs = LossInputs(
        logprobs=policy,
        old_logprobs=old,
        sampler_logprobs=given["sampler"],
        reference_logprobs=given["ref_per_token_logps"],
        advantages=given["advantages"][:, None].expand_as(policy),
        weights=weights.view(-1, 1).expand_as(policy),
        mask=mask,
        sequence_log_ratio=sequence_log_ratio(policy, old, mask, texts),
    )
    return policy_loss(inputs, o)


def slopes(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    largest = max(each.abs().max().item() for each in theirs.values())
    assert largest > 1e-3
    return all((mine[name] - theirs[name]).abs().max() < 2e-6 * max(1.0, largest) for name in theirs)


@pytest.mark.parametrize("truncated", [False, True], ids=["no tis", "tis"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", list(NORMALIZATION))
def test_trl_has_the_same_loss_and_gradients(folder, loss_type, level, truncated):
    for beta, (low, high) in product((0.0, 0.4), ((0.2, 0.2), (0.05, 0.3))):
        theirs = trainer(
            folder,
            loss_type=loss_type,
            importance_sampling_level=level,
            beta=beta,
            epsilon=low,
            epsilon_high=high,
            vllm_importance_sampling_clip_max=CAP,
        )
        # This makes `_compute_loss` multiply by the truncated weights; vLLM itself is not used.
        theirs.use_vllm = truncated
        model, given = theirs.model, with_logprobs(theirs.model, batch())
        o = Objective(
            epsilon_low=low,
            epsilon_high=high,
            tis_cap=CAP if truncated else None,
            kl_coefficient=beta,
            ratio=level,
            normalization=NORMALIZATION[loss_type],
        )
        loss, metrics = ours(model, given, o)
        wanted = theirs._compute_loss(model, given | {"sampling_per_token_logps": given["sampler"]})
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-6)
        assert (metrics["tis_capped"] > 0) == truncated
        assert metrics["clipped_low"] + metrics["clipped_high"] > 0
        if level == "token":  # a sequence's ratio TRL counts once, this module at each of its tokens
            for mine, name in (("clipped_low", "low"), ("clipped_high", "high")):
                share = theirs._metrics["train"][f"clip_ratio/{name}_mean"][-1]
                assert metrics[mine].item() == pytest.approx(share * given["completion_mask"].sum().item())
        assert same(slopes(model, loss), slopes(model, wanted)) == (level == "token" or not truncated)


def test_the_papers_normalization_is_trls_token_mean_with_a_group_per_micro_batch(folder):
    theirs = trainer(folder, loss_type="bnpo", beta=0.4)
    theirs.current_gradient_accumulation_steps = GROUPS
    given = with_logprobs(theirs.model, batch())
    loss, _ = ours(theirs.model, given, Objective(tis_cap=None, kl_coefficient=0.4))
    wanted = 0.0
    for group in range(GROUPS):
        rows = slice(group * SAMPLES, (group + 1) * SAMPLES)
        part = {
            name: value[rows] if value.dim() and name != "noise" else value for name, value in given.items()
        }
        wanted = wanted + theirs._compute_loss(theirs.model, part)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert same(slopes(theirs.model, loss), slopes(theirs.model, wanted))
    # Giving all tokens the same weight is a different loss.
    other, _ = ours(
        theirs.model, given, Objective(tis_cap=None, kl_coefficient=0.4, normalization="batch_tokens")
    )
    assert abs(other - wanted) > 1e-3


@pytest.mark.parametrize(("scale", "kind"), [("group", "group_std"), ("none", "group_mean")])
def test_advantages_are_trls_but_for_the_deviation(folder, scale, kind):
    rewards = [1.0, 0.0, 0.25, 0.5, 0.5, 2.0]
    theirs = trainer(folder, rewards, scale_rewards=scale)
    # TRL samples, rewards and scales; the rewards do not depend on the model's answers.
    found = theirs._generate_and_score_completions([{"prompt": "w3 w4"}] * (GROUPS * SAMPLES))["advantages"]
    table = torch.tensor(rewards).view(GROUPS, SAMPLES)
    mine = advantages(table, Objective(advantage=kind, advantage_epsilon=0.0))
    if kind == "group_std":
        population, unbiased = table.std(1, correction=0), table.std(1)
        assert unbiased.tolist() == pytest.approx((population * (SAMPLES / (SAMPLES - 1)) ** 0.5).tolist())
        mine = mine * (population / (unbiased + 1e-4))[:, None]
    assert found.tolist() == pytest.approx(mine.flatten().tolist(), rel=1e-5, abs=1e-7)
