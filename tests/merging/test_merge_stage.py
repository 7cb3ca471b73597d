"""The `merge` stage in a graph: from artifacts to a Megatron folder that can be exported."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from data_artifacts import make_artifact
from test_merging import assert_same_bits, linear_reference, tensors, variant
from tiny_models import make_checkpoint

from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.conversion.weights import MegatronWeights
from megatron_prism.errors import ConfigError
from megatron_prism.merging.stage import Merge
from megatron_prism.pipeline.config import apply_overrides
from megatron_prism.pipeline.graph import Graph


def test_a_merge_of_base_and_midtrained_can_be_exported(tmp_path):
    hf = make_checkpoint("granite-h", tmp_path / "a")
    variant(hf, tmp_path / "b", 1)
    graph = Graph("merging")
    base = graph.add("base", ImportHF(source=str(hf)))
    midtrain = graph.add("midtrain", ImportHF(source=str(tmp_path / "b")))
    merged = graph.add("merge", Merge(weights={"base": 0.15, "midtrain": 0.85}), base=base, midtrain=midtrain)
    graph.add("export", ExportHF(check="tensors"), model=merged)
    made = graph.run(tmp_path / "run")
    assert isinstance(MegatronWeights(made["merge"].path).architecture.hybrid_pattern, str)
    expected = linear_reference([tensors(hf), tensors(tmp_path / "b")], (0.15, 0.85))
    assert_same_bits(tensors(made["export"].path / "model"), expected)
    metrics = made["merge"].metrics
    assert metrics["models"] == ["base", "midtrain"]
    assert metrics["weights"]["result"]["mamba"] == [0.15, 0.85]


def test_the_order_of_the_models_is_part_of_the_fingerprint():
    one, two = Merge(weights={"a": 0.5, "b": 0.5}), Merge(weights={"b": 0.5, "a": 0.5})
    assert one.fingerprint({}) != two.fingerprint({})
    assert one.fingerprint({}) == Merge(weights={"a": 0.5, "b": 0.5}).fingerprint({})


def test_weights_are_the_decimals_that_were_typed():
    """In Python and YAML as floats, with text for fractions: 0.1 is a tenth, and 1 - 0.15 - 0.85 is zero."""
    stage = Merge(weights={"a": 0.1, "b": "1/3", "c": 1})
    settings = stage._settings()
    assert settings.exact_weights == (Fraction(1, 10), Fraction(1, 3), Fraction(1))
    assert sum(Merge(weights={"a": 0.15, "b": 0.85})._settings().exact_weights) == 1
    overridden = apply_overrides(stage, {"weights.a": 0.3, "weights.b": "2/7"})
    assert overridden._settings().exact_weights == (Fraction(3, 10), Fraction(2, 7), Fraction(1))


def test_the_papers_interpolation_is_a_method(tmp_path):
    hf = make_checkpoint("llama", tmp_path / "a")
    inputs = {"base": make_artifact(ImportHF(source=str(hf)), tmp_path / "base")}
    for seed, name in enumerate(("midtrain", "rl")):
        variant(hf, tmp_path / f"{name}-hf", seed)
        inputs[name] = make_artifact(ImportHF(source=str(tmp_path / f"{name}-hf")), tmp_path / name)
    (inputs["midtrain"].path / "hf/chat_template.jinja").write_text("{{ messages }}")
    stage = Merge(weights={"midtrain": 1.0, "rl": 1.0}, method="interpolate", tokenizer_from="midtrain")
    made = make_artifact(stage, tmp_path / "merged", **inputs)
    assert_same_bits(tensors(made.path), tensors(inputs["rl"].path))
    assert (made.path / "hf/chat_template.jinja").is_file()
    assert any("(tokenizer_from)" in remark for remark in made.metrics["remarks"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"weights": {"a": 1.0}}, "two or more"),
        ({"weights": {"a": 1.0, "b": "half"}}, "weight number 2: 'half' is not a number"),
        ({"weights": {"a": 1.0, "b": [0.5]}}, "weight number 2"),
        ({"weights": {"a": 1.0, "b": 0.5}, "method": "slerp"}, "1 - t and t"),
        ({"weights": {"base": 1.0}, "method": "task-arithmetic"}, "takes no weight for 'base'"),
        ({"weights": {"a": 1.0}, "method": "ties"}, "density"),
        ({"weights": {"a": 1.0, "b": 1.0}, "component_weights": {"atention": 1.0}}, "attention"),
        ({"weights": {"a": 1.0, "b": 1.0}, "tokenizer_from": "c"}, "tokenizer_from='c'"),
        ({"weights": {"a": 1.0, "b": 1.0}, "dtype": "fp8"}, "dtype='fp8'"),
        ({"weights": {"a": math.nan, "b": 1.0}}, "finite"),
        ({"weights": {"a": 1.0, "b": math.inf}}, "finite"),
    ],
)
def test_a_config_is_checked_when_it_is_made(fields, named):
    with pytest.raises(ConfigError, match=named):
        Merge(**fields)


def test_inputs_and_weights_must_be_the_same_names(tmp_path):
    stage = Merge(weights={"base": 0.5, "midtrain": 0.5})
    with pytest.raises(ConfigError, match="no input 'base'; did you mean 'bass'"):
        stage.run({"bass": None, "midtrain": None}, tmp_path)
    with pytest.raises(ConfigError, match="input 'rl' has no weight"):
        stage.run({"base": None, "midtrain": None, "rl": None}, tmp_path)
