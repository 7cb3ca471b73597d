"""The stage from end to end on a tiny random model, and its errors before the model is loaded."""

from __future__ import annotations

import io
import json
import os

import pytest
import warm
import zstandard
from parallel_runs import layout
from tiny_models import make_checkpoint

from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.data.ruler.tasks import NOISE
from megatron_prism.data.ruler.word_lists import NOUNS
from megatron_prism.data.tokenizer import train_tokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.evaluation.scores import read_problems, read_scores
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.pipeline.artifact import Artifact, Receipt, partial_path, seal

VOCABULARY = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    hf = make_checkpoint("llama", root / "hf", vocab_size=VOCABULARY, max_position_embeddings=160)
    texts = [f"{NOISE} {noun} 123. Which number goes with {noun}?" for noun in NOUNS]
    train_tokenizer(texts, VOCABULARY, hf)
    partial = partial_path(root / "artifact")
    partial.mkdir()
    import_checkpoint(hf, partial, None)
    return seal(partial, root / "artifact", Receipt("import", "f" * 64, "import", {}, {}))


def test_a_random_model_is_scored(model, tmp_path):
    stage = RulerEvaluate(
        tasks=["needle_single", "needle_multiquery"], lengths=[128, 160], samples=3, batch_tokens=320
    )
    metrics = stage.run({"model": model}, tmp_path)
    assert list(metrics["lengths"]) == ["128", "160"]
    entry = metrics["lengths"]["160"]
    assert entry["samples"] == 6
    assert 0 <= entry["low"] <= entry["recall"] <= entry["high"] <= 1
    # The model is not trained.
    assert entry["recall"] < 0.5
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(metrics))
    suite = read_scores(tmp_path)["suites"]["ruler-160"]
    assert (suite["pass_rate"], suite["low"], suite["high"]) == tuple(
        entry[k] for k in ("recall", "low", "high")
    )
    assert suite["group"] == "long"
    found = read_problems(tmp_path)["ruler-160"]
    assert len(found) == entry["samples"] == suite["problems"]
    for task, each in entry["tasks"].items():
        recalls = [right for name, (right, _) in found.items() if name.startswith(f"{task}/")]
        assert sum(recalls) / len(recalls) == pytest.approx(each["recall"])
    with zstandard.open(tmp_path / "samples.jsonl.zst", "rb") as handle:
        records = [json.loads(line) for line in io.TextIOWrapper(handle, encoding="ascii")]
    assert len(records) == 12
    assert all(record["tokens"] < record["length"] and record["prediction"] for record in records)
    again = tmp_path / "again"
    again.mkdir()
    stage.run({"model": model, "tokenizer": model_tokenizer(model, tmp_path)}, again)
    assert (again / "samples.jsonl.zst").read_bytes() == (tmp_path / "samples.jsonl.zst").read_bytes()


def model_tokenizer(model, folder):
    partial = partial_path(folder / "tokenizer")
    partial.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (partial / name).write_bytes((model.path / "hf" / name).read_bytes())
    return seal(partial, folder / "tokenizer", Receipt("tokenizer", "e" * 64, "tokenizer", {}, {}))


def test_a_length_beyond_the_positions_is_refused_before_work_starts(model, tmp_path, monkeypatch):
    from megatron_prism.generation.megatron_engine import MegatronEngine

    monkeypatch.setattr(MegatronEngine, "load", lambda *arguments: pytest.fail("the model was loaded"))
    for length, message in ((161, "max_position_embeddings=160"), (16, "too short for task")):
        with pytest.raises(ConfigError, match=message):
            RulerEvaluate(tasks=["needle_single"], lengths=[length], samples=1).run(
                {"model": model}, tmp_path
            )
    assert not list(tmp_path.iterdir())


STAGE = {"tasks": ["needle_single", "needle_multiquery"], "lengths": [128, 160], "samples": 3}


def in_layouts(folder, out):
    """On two ranks: the stage with tensor parallelism, and with two replicas."""
    inputs = {"model": Artifact.open(folder)}
    for name, parallel in (("tp", layout(tp=2)), ("dp", layout(dp=2))):
        (out / name).mkdir(exist_ok=True)
        metrics = RulerEvaluate(**STAGE, parallel=parallel).run(inputs, out / name)
        assert bool(metrics) is (os.environ["RANK"] == "0")


def test_several_processes_give_the_same_answers(model, tmp_path):
    warm.ranks(in_layouts, model.path, tmp_path, world=2)
    (tmp_path / "one").mkdir()
    RulerEvaluate(**STAGE).run({"model": model}, tmp_path / "one")
    for name in ("samples.jsonl.zst", "scores.json"):
        assert {(tmp_path / each / name).read_bytes() for each in ("tp", "dp")} == {
            (tmp_path / "one" / name).read_bytes()
        }
    with pytest.raises(ConfigError, match="engine 'hf' samples in one process"):
        RulerEvaluate(engine=EngineConfig("hf"), parallel=layout(dp=2))
