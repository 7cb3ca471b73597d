from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.generation.request import _tokens_that_may_end
from megatron_prism.generation.token_sampling import sample_tokens
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import model_state, write_checkpoint
from megatron_prism.models.layers.decode_cache import Decode, DecodeCache, Prefill, install_decode_cache
from megatron_prism.platform.process_groups import cuda_requests_on_cpu, session

LIMIT = 48
# 60 of the 64 vocabulary rows are tokens; the other four must never be sampled.
VOCABULARY, PADDED = 60, 64
SIZES = {"vocab_size": PADDED, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
DENSE = Architecture(
    family="granite",
    num_layers=2,
    num_query_groups=2,
    head_dim=8,
    max_position_embeddings=LIMIT,
    embedding_multiplier=6.0,
    logits_scaling=2.0,
    **SIZES,
)
HYBRID = Architecture(
    family="nemotron_h",
    num_layers=5,
    num_query_groups=2,
    head_dim=8,
    activation="squared_relu",
    max_position_embeddings=LIMIT,
    tie_word_embeddings=False,
    position_embedding="none",
    hybrid_pattern="M-*M-",
    mamba_num_heads=8,
    mamba_head_dim=8,
    mamba_state_dim=16,
    mamba_num_groups=2,
    **SIZES,
)
PROMPTS = ["ABC", "AAAAAAAAAAAA", "CAB", "B", "BACK", "D"]


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """One character per token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {"<|endoftext|>": 0, "@": 1} | {chr(65 + i): 2 + i for i in range(VOCABULARY - 2)}
    raw = Tokenizers(models.WordLevel(vocabulary, unk_token="@"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="module", params=[DENSE, HYBRID], ids=["dense", "hybrid"])
def model(request):
    built = build_model(request.param)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return built


@pytest.fixture
def engine(model, tokenizer):
    return MegatronEngine(model, tokenizer, batch_size=4)


@torch.no_grad()
def full_logprobs(model, token_ids):
    """Log-probabilities `[seq, vocabulary]` of one forward pass over the whole text, without a cache."""
    model.eval()
    tokens = torch.tensor([token_ids])
    logits = model(tokens, torch.arange(len(token_ids))[None], None)
    model.train()
    return torch.log_softmax(logits[0, :, :VOCABULARY].float(), -1)


def test_greedy_is_the_argmax_of_full_forwards(engine, model, tokenizer):
    params = SamplingParams(max_new_tokens=12, temperature=0)
    texts = set()
    for prompt, [made] in zip(PROMPTS, engine.generate(PROMPTS, params), strict=True):
        token_ids = tokenizer.encode(prompt)
        for token, logprob in zip(made.token_ids, made.logprobs, strict=True):
            expected = full_logprobs(model, token_ids)[-1]
            assert token == int(expected.argmax())
            assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
            token_ids.append(token)
        assert made.finish_reason == ("stop" if made.token_ids[-1] == 0 else "length")
        texts.add(made.text)
    assert len(texts) > 1


def test_logprobs_are_those_of_the_untempered_model(engine, model, tokenizer):
    params = SamplingParams(max_new_tokens=10, temperature=1.7, top_p=0.8, seed=3)
    for prompt, made in zip(PROMPTS, engine.generate(PROMPTS, params, samples=2), strict=True):
        for completion in made:
            start = tokenizer.encode(prompt)
            full = full_logprobs(model, start + completion.token_ids)[len(start) - 1 : -1]
            expected = full.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
            assert max(completion.token_ids) < VOCABULARY


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mixed_batch_equals_batches_of_one(model, tokenizer, temperature):
    # Long enough that rows end at different steps and the batch is compacted.
    params = SamplingParams(max_new_tokens=30, temperature=temperature, stop=["E", "F", "G", "H"])
    batched = MegatronEngine(model, tokenizer, batch_size=16).generate(PROMPTS, params, samples=4)
    single = MegatronEngine(model, tokenizer, batch_size=1).generate(PROMPTS, params, samples=4)
    assert [[c.token_ids for c in row] for row in batched] == [[c.token_ids for c in row] for row in single]
    if temperature:
        assert len({len(c.token_ids) for row in batched for c in row}) > 3


def test_seeds_decide_the_samples(engine):
    def draw(seed):
        made = engine.generate(["ABC"], SamplingParams(max_new_tokens=8, seed=seed), samples=3)[0]
        return [completion.token_ids for completion in made]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(set(map(tuple, draw(1)))) == 3


def test_a_stop_string_ends_the_completion_and_is_cut(engine):
    free = engine.generate(["ABC"], SamplingParams(max_new_tokens=20, temperature=0))[0][0]
    stop = free.text[4:6]
    cut = free.text.index(stop)
    params = SamplingParams(max_new_tokens=20, temperature=0, stop=["never found", stop])
    made = engine.generate(["ABC"], params)[0][0]
    assert made.text == free.text[:cut]
    assert made.token_ids == free.token_ids[: cut + 2]
    assert len(made.logprobs) == cut + 2
    assert made.finish_reason == "stop"


def test_the_end_token_stops_and_is_not_text(model, tokenizer):
    engine = MegatronEngine(model, tokenizer)
    made = engine.generate(["A"], SamplingParams(max_new_tokens=40, temperature=1.5), samples=40)[0]
    ended = [completion for completion in made if completion.token_ids[-1] == tokenizer.eos_id]
    assert ended
    for completion in ended:
        assert completion.finish_reason == "stop"
        assert len(completion.text) == len(completion.token_ids) - 1
        assert tokenizer.eos_id not in completion.token_ids[:-1]


def test_the_context_length_ends_completions_and_refuses_prompts(engine):
    params = SamplingParams(max_new_tokens=100, temperature=0)
    made = engine.generate(["A" * (LIMIT - 3)], params)[0][0]
    assert len(made.token_ids) <= 3
    assert made.finish_reason == ("stop" if made.token_ids[-1] == 0 else "length")
    with pytest.raises(DataError, match=f"{LIMIT} tokens"):
        engine.generate(["A" * LIMIT], params)
    with pytest.raises(DataError, match="no tokens"):
        engine.generate([""], params)


def test_progress_counts_every_completion_and_training_mode_is_kept(engine, model):
    model.train()
    finished = []
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=2), samples=3, progress=finished.append)
    assert sum(finished) == len(PROMPTS) * 3
    assert model.training


def test_batch_size_is_checked(model, tokenizer):
    with pytest.raises(ConfigError, match="batch_size=0"):
        MegatronEngine(model, tokenizer, batch_size=0)


def test_sampling_follows_the_tempered_nucleus():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    many = logits.expand(4000, -1)

    def shares(temperature, top_p):
        drawn, _ = sample_tokens(many, uniform, temperature, top_p)
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()

    assert shares(1.0, 1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=1e-3)
    assert shares(1.0, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=1e-3)
    assert shares(1.0, 0.01) == [0, 1, 0, 0]
    squared = [0.01, 0.25, 0.0225, 0.0625]
    assert shares(0.5, 1.0) == pytest.approx([p / sum(squared) for p in squared], abs=1e-3)
    assert shares(0, 1.0) == [0, 1, 0, 0]


def drawn_from_sorted(logits: list[float], uniform: float, temperature: float, top_p: float) -> int:
    """The nucleus in plain Python: sort all tokens, keep them until the mass is reached, sample from these."""
    weights = [math.exp(logit / temperature) for logit in logits]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept, mass = [], 0.0
    while mass < top_p * sum(weights):
        kept.append(order[len(kept)])
        mass += weights[kept[-1]]
    running = 0.0
    for token in kept:
        running += weights[token]
        if running > uniform * mass:
            return token
    return kept[-1]


def test_the_nucleus_is_correct_for_any_number_of_tokens():
    """Flat rows, whose nucleus has more tokens than are sorted first, and peaked rows in one batch."""
    source = torch.Generator().manual_seed(7)
    sharpness = torch.tensor([0.01, 0.3, 1.0, 3.0, 9.0]).repeat(40)
    logits = torch.randn(200, 300, generator=source) * sharpness[:, None]
    uniform = torch.rand(200, dtype=torch.float64, generator=source)
    drawn, _ = sample_tokens(logits, uniform, 0.6, 0.95)
    rows = zip(logits.double().tolist(), uniform.tolist(), strict=True)
    assert drawn.tolist() == [drawn_from_sorted(row, draw, 0.6, 0.95) for row, draw in rows]


def test_a_token_without_probability_is_never_sampled():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    drawn, _ = sample_tokens(logits, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64), 1.0, 1.0)
    assert drawn.tolist() == [1, 1, 1]


def test_load_reads_a_train_artifact(model, tokenizer, tokenizer_folder, tmp_path_factory):
    architecture = HYBRID if hasattr(model, "mamba_stack_spec") else DENSE
    folder = tmp_path_factory.mktemp("train")
    (folder / "checkpoint").mkdir()
    architecture.save(folder / "architecture.json")
    with cuda_requests_on_cpu():
        write_checkpoint(model_state([model]), folder / "checkpoint")
    params = SamplingParams(max_new_tokens=6, temperature=0)
    with MegatronEngine.load(folder, tokenizer_folder) as loaded:
        assert loaded.generate(PROMPTS, params) == MegatronEngine(model, tokenizer, 64).generate(
            PROMPTS, params
        )
    dataclasses.replace(architecture, vocab_size=VOCABULARY - 1).save(folder / "architecture.json")
    with pytest.raises(DataError, match="59"), MegatronEngine.load(folder, tokenizer_folder):
        pass


def test_freed_slots_take_the_next_requests(model, tokenizer, monkeypatch):
    """There are never more sequences than slots, and far fewer forward passes than with static batches."""
    steps = []
    honest = DecodeCache.prepare

    def prepare(self, step, length):
        steps.append(step)
        honest(self, step, length)

    monkeypatch.setattr(DecodeCache, "prepare", prepare)
    params = SamplingParams(max_new_tokens=30, stop=["E", "F", "G", "H"])
    made = MegatronEngine(model, tokenizer, batch_size=8).generate(PROMPTS, params, samples=16)
    lengths = [len(completion.token_ids) for row in made for completion in row]
    drawn = [step.count for step in steps if isinstance(step, Decode)]
    assert max(drawn) == 8
    assert sum(drawn) == sum(lengths) - len(lengths)
    waiting = sum(max(lengths[start : start + 8]) for start in range(0, len(lengths), 8))
    assert len(drawn) < 0.8 * waiting
    # A call may lower the engine's batch size, but not raise it.
    for batch_size, largest in ((3, 3), (100, 8)):
        steps.clear()
        engine = MegatronEngine(model, tokenizer, batch_size=8)
        again = engine.generate(PROMPTS, params, samples=16, batch_size=batch_size)
        assert [[c.token_ids for c in row] for row in again] == [[c.token_ids for c in row] for row in made]
        assert max(step.count for step in steps if isinstance(step, Decode)) == largest
    # A prompt is read once for all samples that begin in the same step.
    steps.clear()
    MegatronEngine(model, tokenizer, batch_size=96).generate(PROMPTS, params, samples=16)
    assert [len(step.slots) for step in steps if isinstance(step, Prefill)] == [len(PROMPTS)]


def test_a_context_length_below_the_models(model, tokenizer):
    engine = MegatronEngine(model, tokenizer, context_length=10)
    made = engine.generate(["ABC"], SamplingParams(max_new_tokens=40), samples=8)[0]
    assert max(len(completion.token_ids) for completion in made) == 7
    with pytest.raises(DataError, match="may have 10 together"):
        engine.generate(["A" * 10], SamplingParams())


def test_seeds_belong_to_prompts(engine):
    params = SamplingParams(max_new_tokens=8)
    pair = engine.generate(["ABC", "D"], params, samples=2, seeds=[4, 5])
    assert engine.generate(["D", "ABC"], params, samples=2, seeds=[5, 4]) == pair[::-1]
    assert engine.generate(["ABC"], params, samples=2, seeds=[6]) != pair[:1]


def test_a_stop_string_over_several_tokens_and_at_part_of_a_character():
    """The list of tokens that may end a sequence is complete."""
    flags = _tokens_that_may_end(
        SimpleNamespace(
            vocab_size=5,
            eos_id=4,
            decode_each=lambda ids: ["ab", "b:", "\N{REPLACEMENT CHARACTER}", "c", "</s>"],
        ),
        SamplingParams(stop=["User:"]),
    )
    assert flags == [False, True, True, False, True]
    none = SimpleNamespace(vocab_size=2, eos_id=1)
    assert _tokens_that_may_end(none, SamplingParams()) == [False, True]


def test_layers_of_a_different_backend_are_refused():
    class Attention(torch.nn.Module):
        core_attention = torch.nn.Identity()

    with pytest.raises(ConfigError, match="backend=te: sampling needs the torch layers"):
        install_decode_cache(torch.nn.Sequential(Attention()))


def test_missing_samples_are_made_later_and_each_is_kept_when_it_ends(engine):
    params = SamplingParams(max_new_tokens=6, seed=3)
    whole = engine.generate(PROMPTS, params, samples=4)
    kept = {}

    def keep(index, number, completion):
        kept[index, number] = completion

    numbers = [[3, 0], [], *([[2]] * (len(PROMPTS) - 2))]
    rest = engine.generate(PROMPTS, params, numbers=numbers, keep=keep)
    for index, row in enumerate(numbers):
        expected = [whole[index][number].token_ids for number in row]
        assert [made.token_ids for made in rest[index]] == expected
        assert [kept[index, number] for number in row] == rest[index]
    assert len(kept) == sum(map(len, numbers))
    assert whole[0][3].token_ids != whole[0][0].token_ids, "the samples of a prompt differ, so numbers matter"
    assert all(0 < each.seconds < 60 for each in kept.values())
