"""A model that the user names: what is found in it, which engine samples from it, and what is said if there is none."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from tiny_models import DENSE, make_checkpoint, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.weights import open_weights
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ArtifactError, PrismError
from megatron_prism.evaluation.given_model import GivenModel, GivenTokenizer, add_model
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.models.model_folder import find_model
from megatron_prism.pipeline.artifact import Receipt, partial_path, seal
from megatron_prism.pipeline.graph import Graph

PROMPTS = ["ABC", "hello", "x"]
SAMPLED = SamplingParams(max_new_tokens=6, temperature=1.5, seed=4)
TRAINED = {"tokenizer": "another", "begin": ["<s>"], "end": [], "special_tokens": "spell_out"}
FINGERPRINTS = {name: number * 32 for name, number in (("tokenizer", "a1"), ("train", "b2"), ("merge", "c3"))}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return make_checkpoint("llama", tmp_path_factory.mktemp("hf") / "model", vocab_size=64)


@pytest.fixture(scope="module")
def run_dir(hf, tmp_path_factory):
    """A run folder with a tokenizer, a trained model without one, a merge of it, and its export, each with a link."""
    folder = tmp_path_factory.mktemp("run")

    def add(kind, fill, inputs=(), **metrics):
        fingerprint = FINGERPRINTS.get(kind, "d4" * 32)
        final = folder / "artifacts" / f"{kind}-{fingerprint[:12]}"
        partial_path(final).mkdir(parents=True)
        fill(partial_path(final))
        given = {name: FINGERPRINTS[name] for name in inputs}
        seal(partial_path(final), final, Receipt(kind, fingerprint, kind, {}, given, metrics=metrics))
        (folder / kind).symlink_to(final.relative_to(folder))

    def weights(out):
        import_checkpoint(hf, out)
        shutil.rmtree(out / "hf")

    def export(out):
        (out / "model").mkdir()
        export_checkpoint(open_weights(folder / "train"), out / "model", tokenizer=hf)

    add("tokenizer", make_tokenizer, text={"tokenizer": "of the tokenizer's own receipt"})
    add("train", weights, ["tokenizer"], text=TRAINED)
    add("merge", weights, ["train"])
    add("export", export, ["train", "tokenizer"])
    return folder


def added(*arguments, **options):
    """(stage of the model, stage of the tokenizer, engine) of a graph with this model."""
    model, tokenizer, engine = add_model(Graph("eval"), *map(str, arguments), **options)
    return model.stage, tokenizer.stage, engine


@pytest.mark.parametrize("name", ["train", "merge", "export", "export/model"])
def test_an_artifact_of_a_run_brings_its_tokenizer_and_its_texts(name, run_dir, hf, tmp_path):
    graph = Graph("eval")
    _, _, engine = add_model(graph, str(run_dir / name))
    made = graph.run(tmp_path / "eval")
    model, tokenizer = made["model"], made["tokenizer"]
    assert graph.node("tokenizer").stage.source == str((run_dir / "tokenizer").resolve())
    assert model.metrics["text"] == TRAINED
    assert [each.path for each in model.receipt.outputs] in ([], ["architecture.json"])
    assert find_model(model.path).resolve().exists()
    completions = []
    for name in ("megatron", "hf"):
        config = type(engine)(name)
        with config.open(model=model.path, tokenizer=tokenizer.path, batch_size=3, work=tmp_path) as opened:
            completions.append([row[0].token_ids for row in opened.generate(PROMPTS, SAMPLED)])
    with type(engine)("hf").open(model=hf, tokenizer=hf, batch_size=3, work=tmp_path) as opened:
        assert [[row[0].token_ids for row in opened.generate(PROMPTS, SAMPLED)]] * 2 == completions
    assert engine.name == "megatron"


def test_the_warning_about_other_texts_reaches_the_evaluation(run_dir, tmp_path, caplog):
    graph = Graph("eval")
    _, _, engine = add_model(graph, str(run_dir / "train"))
    text = engine.describe(graph.run(tmp_path))
    assert "was trained with a different tokenizer" in caplog.text
    assert text == Tokenizer.load(run_dir / "tokenizer").record()


def test_a_changed_folder_is_another_model(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "hf")
    megatron = tmp_path / "megatron"
    megatron.mkdir()
    import_checkpoint(hf, megatron)
    for folder in (tmp_path / "hf", megatron):
        before = GivenModel(str(folder)).fingerprint({})
        assert GivenModel(os.path.relpath(folder)).fingerprint({}) == before
        [weights, *_] = [*folder.glob("*.safetensors"), *folder.glob("checkpoint/*.distcp")]
        os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 1))
        assert GivenModel(str(folder)).fingerprint({}) != before


def test_an_artifact_is_known_by_its_contents(run_dir, tmp_path):
    source = tmp_path / "artifacts" / "train-1"
    shutil.copytree((run_dir / "train").resolve(), source)
    before = GivenModel(str(source)).fingerprint({})
    for file in source.rglob("*"):
        os.utime(file)
    assert GivenModel(str(source)).fingerprint({}) == before
    receipt = source / "receipt.json"
    content = json.loads(receipt.read_text())
    content["outputs"][-1]["sha256"] = "0" * 64
    receipt.write_text(json.dumps(content))
    assert GivenModel(str(source)).fingerprint({}) != before, "made again, with another result"
    (source / "checkpoint" / "metadata.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"bytes, but receipt\.json records"):
        added(source)


def test_a_tokenizer_is_known_by_its_contents(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "copy")
    first, second = GivenTokenizer(str(hf)), GivenTokenizer(str(tmp_path / "copy"))
    assert first.fingerprint({}) == second.fingerprint({})
    make_tokenizer(tmp_path / "copy", 60)
    assert first.fingerprint({}) != second.fingerprint({})


def test_folders_bring_their_tokenizers(hf, tmp_path):
    megatron = tmp_path / "megatron"
    megatron.mkdir()
    import_checkpoint(hf, megatron)
    assert added(hf)[1].source == str(hf)
    assert added(megatron)[1].source == str(megatron / "hf")
    assert added(hf, tokenizer=str(megatron))[1].source == str(megatron / "hf")
    assert [added(hf, engine)[2].name for engine in ("megatron", "hf", "vllm")] == ["megatron", "hf", "vllm"]
    assert added(hf, "hf", options={"max_length": 32})[2].options == {"max_length": 32}


@pytest.fixture
def unknown(tmp_path):
    torch.manual_seed(1)
    config = AutoConfig.for_model("gpt2", vocab_size=61, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    make_tokenizer(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_family_that_megatron_does_not_know_is_sampled_by_transformers(unknown, hf, tmp_path):
    assert added(unknown)[2].name == "hf"
    shutil.copytree(hf, tmp_path / "wide")
    config = json.loads((hf / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    assert added(tmp_path / "wide")[2].name == "hf", "a known family with a part that Megatron lacks"
    assert DENSE["vocab_size"] == 61


def test_what_cannot_be_evaluated_is_said_in_a_line(hf, run_dir, unknown, tmp_path):
    def refused(message, *arguments, **options):
        with pytest.raises(PrismError, match=message) as refusal:
            added(*arguments, **options)
        assert "\n" not in str(refusal.value)

    def copy(name, *without):
        shutil.copytree(hf, tmp_path / name, ignore=shutil.ignore_patterns(*without))
        return tmp_path / name

    refused(r"org/model: no such folder; .*hf download org/model --local-dir DIR", "org/model")
    refused(
        r"absent: no such folder; give the folder of a model, an artifact of a run, or", tmp_path / "absent"
    )
    refused("config.json: this is not a folder", hf / "config.json")
    refused("no such folder", "x" * 5000)
    refused(r"neither architecture.json \(Megatron\) nor config.json", tmp_path)
    refused("neither model.safetensors nor", copy("empty", "*.safetensors"))
    refused(r"no tokenizer; name one with --tokenizer DIR", copy("bare", "tokenizer*"))
    refused(r"--tokenizer absent: no such folder", hf, tokenizer="absent")
    refused(r"--tokenizer .*: no tokenizer.json and no tokenizer.model there", hf, tokenizer=str(tmp_path))
    refused(r"config.json: model_type='gpt2' is not supported.*or use engine 'hf'", unknown, "megatron")
    refused("engine='hugs' is not possible", hf, "hugs")
    refused(r"engine 'openai' needs the address of a server", hf, "openai")
    refused(
        "engine 'hf': unknown option 'max_len'; did you mean 'max_length'", hf, "hf", options={"max_len": 3}
    )
    refused("engine 'hf' loads a model from a folder; use engine 'openai'", "http://localhost:1/v1", "hf")
    refused(r"--tokenizer DIR", "http://localhost:1/v1", options={"model": "tiny"})
    refused("base_url", "http://localhost:1/v1", options={"base_url": "http://localhost:2/v1"})
    refused("not an http", "http:///v1", tokenizer=str(hf))
    checkpoint = tmp_path / "megatron"
    checkpoint.mkdir()
    shutil.copyfile(run_dir / "train" / "architecture.json", checkpoint / "architecture.json")
    refused("checkpoint: no such folder; this Megatron folder has no weights", checkpoint)
