"""The engine over transformers: the same completions as Megatron's, for other architectures too, in any batch."""

from __future__ import annotations

import json
import sys

import pytest
import stand_in_vllm
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint, make_tokenizer, randomize
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.weights import open_weights
from megatron_prism.errors import CheckpointError, ConfigError, DataError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.engine_config import EXPORTED, EngineConfig
from megatron_prism.generation.hf_engine import HFEngine
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.generation.open_engine import open_engine

# 61 of the 64 vocabulary rows are tokens; the other three must never be sampled.
TOKENS, ROWS = 61, 64
# Tiny tied models with Granite's embedding multiplier repeat the last token forever, which would prove nothing.
KINDS = {"llama": {}, "granite-h": {"tie_word_embeddings": False}, "nemotron-h": {}}
# Shorter than Mamba's convolution, and longer.
PROMPTS = ["A", "hello,there.this;is:long", "BC", "12+34=", "BC"]
GREEDY = SamplingParams(max_new_tokens=20, temperature=0)
SAMPLED = SamplingParams(max_new_tokens=20, temperature=0.6, top_p=0.95, seed=3)
FLAT = SamplingParams(max_new_tokens=20, temperature=2.0, seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> (Megatron folder, Hugging Face folder that was exported from it); each is made once."""
    made = {}

    def get(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            source = make_checkpoint(kind, root / "source", vocab_size=ROWS, **KINDS[kind])
            tensors = load_file(source / "model.safetensors")
            for name, tensor in tensors.items():
                # With larger steps, Mamba's state affects the next tokens.
                if name.endswith("dt_bias"):
                    tensor[::2] += 5
            save_file(tensors, source / "model.safetensors", {"format": "pt"})
            megatron, exported = root / "megatron", root / "exported"
            megatron.mkdir()
            exported.mkdir()
            import_checkpoint(source, megatron)
            export_checkpoint(open_weights(megatron), exported)
            made[kind] = megatron, exported
        return made[kind]

    return get


@pytest.fixture(scope="module")
def engines(folders):
    """kind -> (expected completions at three temperatures, engine over transformers)."""
    made = {}

    def get(kind):
        if kind not in made:
            megatron, exported = folders(kind)
            with MegatronEngine.load(megatron, exported, batch_size=3) as engine:
                expected = [engine.generate(PROMPTS, each, samples=2) for each in (GREEDY, SAMPLED, FLAT)]
            made[kind] = expected, HFEngine.load(exported, exported, batch_size=4)
        return made[kind]

    return get


def tokens_of(rows):
    return [[completion.token_ids for completion in row] for row in rows]


def pairs_of(first, second):
    return [pair for rows in zip(first, second, strict=True) for pair in zip(*rows, strict=True)]


def largest_difference(first, second):
    return max(
        abs(a - b)
        for one, two in pairs_of(first, second)
        for a, b in zip(one.logprobs, two.logprobs, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["greedy", "sampled", "flat"])
def test_completions_are_those_of_the_megatron_engine(kind, place, engines):
    expected, engine = engines(kind)
    made = engine.generate(PROMPTS, (GREEDY, SAMPLED, FLAT)[place], samples=2)
    assert tokens_of(made) == tokens_of(expected[place])
    assert largest_difference(made, expected[place]) <= 1e-4
    for one, two in pairs_of(made, expected[place]):
        assert (one.text, one.finish_reason) == (two.text, two.finish_reason)
        assert one.seconds > 0
    assert len({tuple(ids) for row in tokens_of(made) for ids in row}) >= len(PROMPTS) - 1
    assert max(token for row in tokens_of(made) for ids in row for token in ids) < TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_padding_that_is_not_masked_would_show(kind, engines, monkeypatch):
    expected, engine = engines(kind)
    honest = engine.model.generate
    monkeypatch.setattr(
        engine.model,
        "generate",
        lambda tokens, attention_mask, **options: honest(
            tokens, attention_mask=torch.ones_like(attention_mask), **options
        ),
    )
    made = engine.generate(PROMPTS, FLAT, samples=2, batch_size=10)
    assert tokens_of(made)[1] == tokens_of(expected[2])[1], "the longest prompt has no padding"
    assert tokens_of(made) != tokens_of(expected[2])


def test_megatron_reads_a_hybrid_hugging_face_folder(engines, folders):
    _, exported = folders("nemotron-h")
    with open_engine("megatron", model_folder=exported, tokenizer_folder=exported) as engine:
        assert tokens_of(engine.generate(PROMPTS, FLAT, samples=2)) == tokens_of(engines("nemotron-h")[0][2])


def test_engines_read_both_kinds_of_folders(engines, folders, tmp_path, monkeypatch):
    megatron, exported = folders("llama")
    expected = tokens_of(engines("llama")[0][2])
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    (given / "model").symlink_to(exported)

    def opened(name, model, batch_size=4):
        return EngineConfig(name).open(model=model, tokenizer=exported, batch_size=batch_size, work=work)

    for name, model, exports in (
        ("megatron", given, False),
        ("hf", given, False),
        ("hf", exported, False),
        ("hf", megatron, True),
    ):
        with opened(name, model) as engine:
            assert tokens_of(engine.generate(PROMPTS, FLAT, samples=2)) == expected
            assert engine.batch_size == 4
            assert (work / EXPORTED).exists() is exports
        assert not (work / EXPORTED).exists()
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm)
    with opened("vllm", given) as engine:
        assert engine._llm.file.parent == given / "model"
    (given / "model").unlink()
    (given / "model").symlink_to(tmp_path / "gone")
    with (
        pytest.raises(CheckpointError, match=r"given/model: links to .*gone, which does not exist"),
        opened("hf", given),
    ):
        pass
    with (
        pytest.raises(CheckpointError, match=r"neither architecture.json \(Megatron\) nor config.json"),
        opened("megatron", tmp_path),
    ):
        pass


def pairs(generator, count, longest):
    """Contexts and continuations of random tokens, some contexts longer than the model reads."""

    def row(most):
        length = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(2, TOKENS, (length,), generator=generator).tolist()

    return [(row(longest), row(12)) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_those_of_the_megatron_engine(kind, folders, engines):
    megatron, exported = folders(kind)
    engine = engines(kind)[1]
    given = pairs(torch.Generator().manual_seed(2), 24, 200)
    # Greedy continuations are recognised.
    given += [(engine.tokenizer.encode("ABC"), engine.generate(["ABC"], GREEDY)[0][0].token_ids)]
    done = []
    found = engine.log_likelihoods(given, batch_tokens=300, progress=done.append)
    with MegatronEngine.load(megatron, exported) as reference:
        expected = reference.log_likelihoods(given)
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)
    assert [each.greedy for each in found] == [each.greedy for each in expected]
    assert (found[-1].greedy, found[0].greedy) == (True, False)
    assert sum(done) == len(given)
    assert len(done) > 5
    for wrong, message in ((([], [3]), "need at least one token"), (([3], [3] * 129), "has 129 tokens")):
        with pytest.raises(DataError, match=message):
            engine.log_likelihoods([wrong])


def test_numbers_and_batches_do_not_change_a_sample(engines):
    engine = engines("llama")[1]
    whole = engine.generate(PROMPTS, FLAT, samples=3)
    kept, finished = {}, []
    some = engine.generate(
        PROMPTS,
        FLAT,
        numbers=[[2], [], [0, 1], [1], []],
        batch_size=2,
        keep=lambda prompt, number, completion: kept.update({(prompt, number): completion}),
        progress=finished.append,
    )
    assert tokens_of(some) == [
        [whole[prompt][number].token_ids for number in numbers]
        for prompt, numbers in enumerate([[2], [], [0, 1], [1], []])
    ]
    assert kept == {(0, 2): some[0][0], (2, 0): some[2][0], (2, 1): some[2][1], (3, 1): some[3][0]}
    assert sum(finished) == 4
    assert engine.generate(PROMPTS, FLAT, numbers=[[]] * 5) == [[]] * 5
    assert tokens_of(engine.generate(PROMPTS, FLAT, seeds=[1] * 5))[2:5:2] != tokens_of(whole)[2:5:2]


def test_the_end_of_a_completion(engines):
    (free, _, _), engine = engines("llama")
    stop = free[1][0].text[4:6]
    cut = free[1][0].text.index(stop)
    [[made]] = engine.generate(
        PROMPTS[1:2], SamplingParams(max_new_tokens=20, temperature=0, stop=["never", stop])
    )
    assert (made.text, made.finish_reason) == (free[1][0].text[:cut], "stop")
    assert made.token_ids == free[1][0].token_ids[: cut + 2]
    many = engine.generate(["A"], SamplingParams(max_new_tokens=100, temperature=2.0), samples=30)[0]
    ended = [each for each in many if each.token_ids[-1] == engine.tokenizer.eos_id]
    assert ended
    for each in ended:
        assert (each.text, each.finish_reason) == (engine.tokenizer.decode(each.token_ids[:-1]), "stop")
    assert all(each.finish_reason == "length" for each in many if each not in ended)
    short = HFEngine(engine.model, engine.tokenizer, max_length=12)
    full = [row[0] for row in short.generate(["12+34=", "BC"], SAMPLED)]
    assert [(len(each.token_ids), each.finish_reason) for each in full] == [(6, "length"), (10, "length")]
    with pytest.raises(DataError, match="may have 12 together"):
        short.generate(["A" * 12], GREEDY)
    assert engine.context_length == 128
    with pytest.raises(DataError, match="has 128 tokens"):
        engine.generate(["A" * 128], GREEDY)
    with pytest.raises(ConfigError, match="batch_size=0"):
        HFEngine(engine.model, engine.tokenizer, batch_size=0)


def unknown_model(folder, **config):
    """A model of an architecture that Megatron does not know, with a generation config that changes what it samples."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=TOKENS, **config))
    randomize(model)
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.suppress_tokens = list(range(2, 40))
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def test_an_architecture_that_megatron_does_not_know(tmp_path):
    folder = unknown_model(
        tmp_path / "gpt2", model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64
    )
    with (
        pytest.raises(ConfigError, match="model_type='gpt2' is not supported"),
        open_engine("megatron", model_folder=folder, tokenizer_folder=folder),
    ):
        pass
    with open_engine("hf", folder=folder, tokenizer_folder=folder) as engine:
        made = engine.generate(PROMPTS, GREEDY)
        alone = engine.generate(PROMPTS, GREEDY, batch_size=1)
        assert engine.context_length == 64
        ids = engine.tokenizer.encode(PROMPTS[1])
        for token, logprob in zip(made[1][0].token_ids, made[1][0].logprobs, strict=True):
            expected = torch.log_softmax(engine.model(torch.tensor([ids])).logits[0, -1].detach(), -1)
            assert token == int(expected.argmax()), "the folder's generation config has no influence"
            assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
            ids.append(token)
    assert tokens_of(made) == tokens_of(alone)
    assert largest_difference(made, alone) <= 1e-4


ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
# One ignores the mask of padding in its recurrent layers; the other mixes the rows of a batch after the first token.
ODD = {
    "recurrent_gemma": ("prompts of one length", ATTENTION | {"block_types": ["recurrent", "attention"]}),
    "rwkv": ("one prompt", {"attention_hidden_size": 32, "context_length": 64}),
}


@pytest.mark.parametrize("model_type", ODD)
def test_an_architecture_whose_batches_differ_gets_smaller_ones(model_type, tmp_path, caplog):
    holds, config = ODD[model_type]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    folder = unknown_model(tmp_path / "model", model_type=model_type, **sizes, **config)
    engine = HFEngine.load(folder, folder)
    # In recurrent_gemma, a prompt of one token continues what the module computed last.
    made = engine.generate(PROMPTS[1:], FLAT)
    assert f"model_type={model_type}: transformers computes something else" in caplog.text
    assert f"so a batch holds {holds}" in caplog.text
    alone = engine.generate(PROMPTS[1:], FLAT, batch_size=1)
    assert tokens_of(made) == tokens_of(alone)
    given = pairs(torch.Generator().manual_seed(2), 6, 30)
    together, single = engine.log_likelihoods(given), engine.log_likelihoods(given, batch_tokens=1)
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in single], abs=1e-4)
    engine._batching = "prompts of any lengths"
    assert tokens_of(engine.generate(PROMPTS[1:], FLAT)) != tokens_of(alone), "the negative control"


def test_models_that_cannot_be_sampled(tmp_path):
    folder = make_checkpoint("llama", tmp_path / "model")

    def refused(error, message):
        with pytest.raises(error, match=message) as refusal:
            HFEngine.load(folder, folder)
        assert "\n" not in str(refusal.value)

    make_tokenizer(folder, TOKENS + 1)
    refused(DataError, r"62 tokens, but .*model has vocab_size=61")
    make_tokenizer(folder, TOKENS)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(
        CheckpointError, r"the weights lack 'model.layers.1.mlp.up_proj.weight', which model_type=llama has"
    )
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(CheckpointError, "transformers cannot load this model .*safetensors")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "ours", "auto_map": {"AutoModelForCausalLM": "modeling_ours.Ours"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "modeling_ours.py").write_text("raise SystemExit('this code ran')")
    refused(CheckpointError, "transformers cannot load this model")
    (folder / "config.json").unlink()
    refused(CheckpointError, r"config\.json")
