"""The start token in engines and conversions, against transformers on the ids of an independent tokenizer."""

from __future__ import annotations

import json
import sys

import pytest
import stand_in_vllm
import torch
from sentencepiece import SentencePieceProcessor
from tiny_models import make_checkpoint
from tokenizer_folders import BOS, sentencepiece_folder, with_begin
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from megatron_prism.cli.convert import app
from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.quantization.calibration import windows
from megatron_prism.conversion.weights import open_weights
from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ServerError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.generation.vllm_engine import VLLMEngine

PROMPTS = ["ABCDE", "the", "12 + 3 ="]
GREEDY = SamplingParams(max_new_tokens=10, temperature=0.0)
LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "eos_token": "</s>", "bos_token": BOS}


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def model(request, tmp_path_factory):
    """(Hugging Face folder, the same as a Megatron folder, text -> ids with the start token)."""
    folder = tmp_path_factory.mktemp("model")
    rows = 258 if request.param == "tokenizer.json" else 420
    make_checkpoint("llama", folder, vocab_size=rows, bos_token_id=None, eos_token_id=2, pad_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if request.param == "tokenizer.json":
        with_begin(folder)
        theirs = AutoTokenizer.from_pretrained(str(folder))
        ids = lambda text: theirs(text)["input_ids"]  # noqa: E731
    else:
        sentencepiece_folder(folder, "bpe", rows, **LLAMA)
        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        ids = lambda text: pieces.encode(text, add_bos=True)  # noqa: E731
    megatron = tmp_path_factory.mktemp("megatron")
    import_checkpoint(folder, megatron)
    assert (megatron / "hf" / request.param).read_bytes() == (folder / request.param).read_bytes()
    return folder, megatron, ids


def test_greedy_is_what_transformers_generates(model):
    folder, megatron, ids = model
    with MegatronEngine.load(megatron, megatron / "hf") as engine:
        made = [row[0].token_ids for row in engine.generate(PROMPTS, GREEDY)]
        end = engine.tokenizer.eos_id
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()

    def generated(begin):
        for prompt in PROMPTS:
            prompt_ids = torch.tensor([ids(prompt)[0 if begin else 1 :]])
            options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
            yield reference.generate(prompt_ids, **options)[0, prompt_ids.shape[1] :].tolist()

    assert made == list(generated(begin=True))
    # Negative control: without the start token the completions differ.
    assert made != list(generated(begin=False))
    with MegatronEngine.load(megatron, megatron / "hf", text=TextSettings(begin="none")) as engine:
        assert [row[0].token_ids for row in engine.generate(PROMPTS, GREEDY)] == list(generated(begin=False))


def test_vllm_gets_the_same_ids(model, monkeypatch):
    folder, _, ids = model
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm)
    read = []
    complete = stand_in_vllm.LLM._complete
    monkeypatch.setattr(
        stand_in_vllm.LLM,
        "_complete",
        lambda self, prompt_ids, params: read.append(prompt_ids) or complete(self, prompt_ids, params),
    )
    engine = VLLMEngine(folder, max_length=64)
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=2), samples=1)
    assert read == [ids(prompt) for prompt in PROMPTS]
    monkeypatch.setattr(stand_in_vllm.LLM, "begin", (1,))
    with pytest.raises(ServerError, match="so this version of vLLM changes prompts"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=2))


def test_calibration_reads_documents_as_training_does(model):
    folder, _, ids = model
    texts = ["the first text", "and another one, longer than the first"] * 4
    found = windows(iter(texts), folder, count=3, length=16, vocab_size=420)
    end = Tokenizer.load(folder).eos_id
    stream = [number for text in texts for number in [*ids(text)[1:], end]]
    begin = ids("x")[:1]
    assert found == [begin + stream[index * 15 : (index + 1) * 15] for index in range(3)]


def test_export_copies_the_tokenizer_unchanged(model, tmp_path):
    folder, megatron, _ = model
    out = tmp_path / "out"
    out.mkdir()
    export_checkpoint(open_weights(megatron), out, tokenizer=folder)
    for file in folder.glob("tokenizer*"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    text = tmp_path / "text"
    text.write_text("the text to run both on")
    result = tmp_path / "result.json"
    arguments = ["verify", str(megatron), str(out), "--logits", "--text", str(text), "--json", str(result)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads(result.read_text())["logits"]["top1_agreement"] == 1.0
