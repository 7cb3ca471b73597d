"""Greedy decoding of a Hugging Face folder in Megatron, token for token as in transformers' `generate`, and the
log-likelihoods of given continuations.

Prompts of different lengths go to transformers as one left-padded batch, and to the engine without padding. The end
token is disabled on both sides, but its logit is unchanged, so every row gets all its tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.generation import likelihood_plan
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP
from megatron_prism.models.build import build_model
from megatron_prism.models.families import family
from megatron_prism.models.layers.decode_cache import Branches, Decode, DecodeCache, Prefill
from megatron_prism.platform.process_groups import session

STEPS, PAD = 64, 1
# Shorter than Mamba's convolution, about as long as the window of 7, and much longer.
LENGTHS = (1, 2, 3, 7, 8, 23, 40)
# Tiny tied models with Granite's embedding multiplier repeat the last token forever, which would prove nothing.
UNTIED = {"tie_word_embeddings": False}
KINDS = {
    "llama": {},
    "llama-scaled-tied": {},
    "mistral-window": {},
    "mistral-wide-heads": {},
    "granite": UNTIED,
    "granite4": UNTIED,
    "granite-h": UNTIED,
    "granite-h-rope-groups": {},
    "nemotron-h": {},
}
HYBRID = ("granite-h", "granite-h-rope-groups", "nemotron-h")
GREEDY = SamplingParams(max_new_tokens=STEPS, temperature=0)


@dataclass
class Made:
    """`tokens` and their `logprobs`, both `[batch, STEPS]`, and the smallest lead of a first choice over the second."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    lead: float = float("nan")


@dataclass
class Case:
    """A family's model in both libraries, and the completions of transformers."""

    engine: MegatronEngine
    prompts: list[str]
    reference: torch.nn.Module
    expected: Made

    @property
    def token_ids(self) -> list[list[int]]:
        return self.engine.tokenizer.encode_batch(self.prompts)


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Made once per kind."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = make_checkpoint(kind, tmp_path_factory.mktemp(kind) / "hf", **KINDS[kind])
            lengthen_steps(folder / "model.safetensors")
            architecture = HFWeights(folder).architecture
            model = build_model(architecture)
            load_hf_weights([model], architecture, folder)
            tokenizer = Tokenizer.load(folder)
            tokenizer.eos_id = -1
            draw = torch.Generator().manual_seed(7)
            prompts = [
                "".join(chr(33 + i) for i in torch.randint(59, (length,), generator=draw).tolist())
                for length in LENGTHS
            ]
            config = AutoConfig.from_pretrained(folder)
            for key, value in family(architecture.family).for_comparison.items():
                setattr(config, key, value)
            reference = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
            reference.generation_config.eos_token_id = None
            case = Case(MegatronEngine(model, tokenizer), prompts, reference.eval(), None)
            assert [len(ids) for ids in case.token_ids] == list(LENGTHS)
            case.expected = transformers_greedy(case.reference, case.token_ids)
            made[kind] = case
        return made[kind]

    return get


def lengthen_steps(file):
    """Every other Mamba head gets a dt of about 0.3, so that its state affects the next tokens.

    With only the small dt of the other heads, a lost state changes log-probabilities by 1e-3 and hardly any token.
    """
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("dt_bias"):
            tensor[::2] += 5
    save_file(tensors, file, {"format": "pt"})


def transformers_greedy(model, prompts):
    """One left-padded batch."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    out = model.generate(
        tokens,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=STEPS,
        pad_token_id=PAD,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.log_softmax(torch.stack(out.logits, 1), -1)
    best = logprobs.topk(2, -1).values
    made = out.sequences[:, width:]
    return Made(
        made,
        logprobs.gather(-1, made[..., None])[..., 0],
        float((best[..., 0] - best[..., 1]).min()),
    )


def engine_greedy(case, batch_size=64):
    engine = MegatronEngine(case.engine.models[0], case.engine.tokenizer, batch_size)
    return as_made(engine.generate(case.prompts, GREEDY))


def as_made(completions):
    rows = [row for [row] in completions]
    assert {len(row.token_ids) for row in rows} == {STEPS}
    assert {row.finish_reason for row in rows} == {"length"}
    return Made(torch.tensor([row.token_ids for row in rows]), torch.tensor([row.logprobs for row in rows]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [64, 3])
def test_greedy_tokens_and_logprobs_are_those_of_transformers(kind, batch_size, cases):
    case = cases(kind)
    made = engine_greedy(case, batch_size)
    assert made.tokens.tolist() == case.expected.tokens.tolist()
    assert (made.logprobs - case.expected.logprobs).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_completions_differ_enough(kind, cases):
    expected = cases(kind).expected
    # Rows must differ and must not only repeat one token. Without near ties, tokens are not equal by chance.
    assert len({tuple(row) for row in expected.tokens.tolist()}) == len(LENGTHS)
    assert len(set(expected.tokens.flatten().tolist())) >= 20
    assert expected.lead > 1e-5


@pytest.mark.parametrize("kind", HYBRID)
def test_left_padding_does_not_enter_transformers_own_mamba_states(kind, cases):
    # It masks padding before the projection and after the convolution, so the padded batch is a fair reference.
    case = cases(kind)
    for row, token_ids in enumerate(case.token_ids):
        alone = transformers_greedy(case.reference, [token_ids])
        assert alone.tokens[0].tolist() == case.expected.tokens[row].tolist()
        assert (alone.logprobs[0] - case.expected.logprobs[row]).abs().max() <= 1e-4


DAMAGED_STEP = 10


def states(cache, what):
    """The cached tensors of one kind in all layers."""
    for module, pair in cache._tensors.items():
        names = ("conv", "ssm") if hasattr(module, "d_inner_local_tp") else ("key", "value")
        yield from [tensor for name, tensor in zip(names, pair, strict=True) if name == what]


@contextmanager
def damaged(case, damage):
    """Call `damage(cache)` once, when each text has its first DAMAGED_STEP tokens."""
    honest, steps = DecodeCache.prepare, []

    def prepare(self, step, length):
        steps.append(step)
        if len(steps) == 1 + DAMAGED_STEP:
            damage(self)
        honest(self, step, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeCache, "prepare", prepare)
        yield MegatronEngine(case.engine.models[0], case.engine.tokenizer)
    assert [type(step) for step in steps[:2]] == [Prefill, Decode]
    assert len(steps) == STEPS


def forget(what):
    def damage(cache):
        found = list(states(cache, what))
        assert found
        for tensor in found:
            tensor.zero_()

    return damage


def exchange_rows(what):
    """The effect of a wrong compaction of the batch."""

    def damage(cache):
        for tensor in states(cache, what):
            tensor.copy_(tensor.roll(1, 0))

    return damage


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("llama", "key"),
        ("mistral-window", "value"),
        ("granite", "key"),
        ("granite4", "value"),
        ("granite-h", "key"),
        ("granite-h", "conv"),
        ("granite-h", "ssm"),
        ("nemotron-h", "value"),
        ("nemotron-h", "conv"),
        ("nemotron-h", "ssm"),
    ],
)
@pytest.mark.parametrize("damage", [forget, exchange_rows])
def test_a_lost_state_changes_the_completions(kind, what, damage, cases):
    case = cases(kind)
    with damaged(case, damage(what)) as engine:
        made = as_made(engine.generate(case.prompts, GREEDY))
    assert made.tokens.tolist() != case.expected.tokens.tolist()
    print(
        kind,
        what,
        int((made.tokens != case.expected.tokens).any(1).sum()),
        float((made.logprobs - case.expected.logprobs).abs().max()),
    )
    # Tokens before the damage are those of the undamaged model.
    before = slice(DAMAGED_STEP)
    assert made.tokens[:, before].tolist() == case.expected.tokens[:, before].tolist()


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_window_length_changes_the_completions(wrong, cases):
    case = cases("mistral-window")
    layers = [
        module for module in case.engine.models[0].modules() if getattr(module, "reach", None) is not None
    ]
    assert [layer.reach for layer in layers] == [6] * 3
    try:
        for layer in layers:
            layer.reach += wrong
        made = engine_greedy(case)
    finally:
        for layer in layers:
            layer.reach -= wrong
    assert made.tokens.tolist() != case.expected.tokens.tolist()


# Contexts of these lengths have one, three, three and four continuations. The second and the fourth share theirs,
# because that saves tokens. Windows of 7 end in the context, at its end and in the continuation.
CONTINUATIONS = {40: (3,), 23: (1, 9, 4), 2: (5, 9, 7), 9: (2, 1, 12, 3)}


def pairs():
    """(context, continuation) token ids."""
    draw = torch.Generator().manual_seed(8)
    made = []
    for length, sizes in CONTINUATIONS.items():
        context = torch.randint(2, 61, (length,), generator=draw).tolist()
        made += [(context, torch.randint(2, 61, (size,), generator=draw).tolist()) for size in sizes]
    return made


@torch.no_grad()
def transformers_likelihood(model, context, continuation):
    logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    logprob = torch.log_softmax(logits, -1).gather(1, wanted[:, None]).sum()
    return float(logprob), bool((logits.argmax(-1) == wanted).all())


def with_greedy(case, made):
    """The pairs, and for each context the model's own next two tokens."""
    contexts = {tuple(context): None for context, _ in made}
    greedy = []
    for context in contexts:
        ids = torch.tensor([context])
        own = case.reference.generate(ids, do_sample=False, max_new_tokens=2, pad_token_id=PAD)
        greedy.append((list(context), own[0, len(context) :].tolist()))
    return made + greedy


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_those_of_transformers(kind, cases):
    case = cases(kind)
    made = with_greedy(case, pairs())
    expected = [transformers_likelihood(case.reference, *pair) for pair in made]
    # Rows of one text, rows of several texts, and one row for each kind of text.
    for batch_tokens in (1, 30, 4096):
        found = case.engine.log_likelihoods(made, batch_tokens=batch_tokens)
        assert [each.greedy for each in found] == [greedy for _, greedy in expected]
        for each, (logprob, _) in zip(found, expected, strict=True):
            assert each.logprob == pytest.approx(logprob, abs=1e-4)
    assert sum(greedy for _, greedy in expected) >= len(CONTINUATIONS)


def questions():
    """Pairs whose contexts begin alike: with 30 tokens, and with the first 12 of them."""
    draw = torch.Generator().manual_seed(9)
    examples = torch.randint(2, 61, (30,), generator=draw).tolist()
    made = []
    for shared, length, sizes in (
        (30, 7, (1, 1)),
        (30, 1, (4,)),
        (30, 20, (2,)),
        (12, 3, (1,)),
        (12, 9, (5,)),
    ):
        context = examples[:shared] + torch.randint(2, 61, (length,), generator=draw).tolist()
        made += [(context, torch.randint(2, 61, (size,), generator=draw).tolist()) for size in sizes]
    # A context that another one only continues.
    return [*made, (examples, made[0][1]), (examples[:12], [7])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_common_beginning_is_read_once(kind, cases, monkeypatch):
    case, made, read = cases(kind), questions(), []
    honest = Prefill.of

    def of(lengths, *rest):
        read.append(sum(lengths))
        return honest(lengths, *rest)

    monkeypatch.setattr(Prefill, "of", of)
    apart = case.engine.log_likelihoods(made)
    whole, read[:] = sum(read), []
    monkeypatch.setattr(likelihood_plan, "SHARED_TOKENS", 10)
    for batch_tokens in (1, 30, 4096):
        found = case.engine.log_likelihoods(made, batch_tokens=batch_tokens)
        for each, other in zip(found, apart, strict=True):
            assert each.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert each.greedy == other.greedy
    for each, pair in zip(apart, made, strict=True):
        assert each.logprob == pytest.approx(transformers_likelihood(case.reference, *pair)[0], abs=1e-4)
    assert sum(read) / 3 < whole / 2


@pytest.mark.parametrize(("kind", "what"), [("llama", "key"), ("granite-h", "conv"), ("granite-h", "ssm")])
def test_a_branch_that_loses_the_state_of_its_context_is_noticed(kind, what, cases, monkeypatch):
    case, honest, seen = cases(kind), DecodeCache.prepare, []

    def prepare(self, step, length):
        if isinstance(step, Branches):
            seen.append(step)
            forget(what)(self)
        honest(self, step, length)

    whole = case.engine.log_likelihoods(pairs())
    monkeypatch.setattr(DecodeCache, "prepare", prepare)
    damaged = case.engine.log_likelihoods(pairs())
    assert len(seen) == 1
    # Contexts whose continuations are read alone keep theirs.
    lost = [abs(a.logprob - b.logprob) > 1e-4 for a, b in zip(whole, damaged, strict=True)]
    joined = [size > 1 and length in (23, 9) for length, sizes in CONTINUATIONS.items() for size in sizes]
    assert lost == joined


def test_the_families_have_the_expected_layers(cases):
    for kind in HYBRID:
        pattern = cases(kind).engine.models[0].hybrid_override_pattern
        assert {MAMBA, ATTENTION, MLP} <= set(pattern)
    assert max(LENGTHS) + STEPS <= cases("llama").engine.models[0].max_sequence_length
