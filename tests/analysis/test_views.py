"""What the views of all verbs have in common: names, units, legends, and what is refused before any work."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from planted import analyze, make_base, moved, refusal
from tiny_models import make_checkpoint

from megatron_prism.analysis.direction_summary import analyze_direction
from megatron_prism.analysis.figures import inline_svg
from megatron_prism.analysis.spectrum_summary import analyze_spectrum
from megatron_prism.analysis.trajectory_summary import analyze_trajectory
from megatron_prism.analysis.view import view
from megatron_prism.analysis.views.cka import by_layer
from megatron_prism.analysis.weight_summary import analyze_weights
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import PrismError
from megatron_prism.platform import console


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A hybrid base, the same weights again, and two models that moved every weight."""
    root = tmp_path_factory.mktemp("views")
    base = make_base("granite-h", root / "base", torch.float32)
    same = moved(base, root / "step_1", lambda _, weights: 0 * weights)
    double = moved(base, root / "step_2", lambda _, weights: weights)
    half = moved(base, root / "half", lambda _, weights: -weights / 2)
    return base, same, double, half


@pytest.fixture(scope="module")
def documents(models):
    base, same, double, half = models
    made = (
        analyze_weights(base, [same, double]),
        analyze_direction(base, [same, double, half]),
        analyze_spectrum(base, [same, double], top=2),
        analyze_trajectory(base, [same, double], [half]),
    )
    return {each.verb: each.document for each in made}


def test_every_verb_names_sub_components_as_documents_do(documents):
    known = {
        re.sub(r"^(\w+)\.\1$", r"\1", name) for name in documents["weights"]["models"][0]["sub_components"]
    }
    assert {"mamba.in_proj.dt", "attention.q", "norm"} < known
    for verb, document in documents.items():
        tables = [table for table in view(document).tables if "sub-component" in table.columns]
        assert tables, verb
        for table in tables:
            column = table.columns.index("sub-component")
            named = {row[column] for row in table.rows} - {"all"}
            # A spectrum is of matrices only.
            assert named == known if verb != "spectrum" else len(known) > len(named & known) == len(named) > 5


def test_a_column_of_percentages_says_so_and_no_number_of_directions_looks_like_one(documents):
    tables = {verb: view(document).tables for verb, document in documents.items()}
    of_components, by_threshold, of_parts, precision = tables["weights"]
    assert dict(zip(of_components.columns, of_components.rows[0], strict=True))["sparsity (%)"] == "100.0"
    assert dict(zip(precision.columns, precision.rows[1], strict=True))["changes lost in bf16 (%)"] == "0.0"
    assert "(%)" in by_threshold.title
    assert "(%)" in of_parts.title
    assert {"in 1 (%)", "in 2 (%)"} < set(tables["spectrum"][0].columns)
    assert not any("top" in column for column in tables["spectrum"][0].columns)


@pytest.mark.parametrize(
    ("verb", "name"),
    [("weights", "delta_by_layer"), ("direction", "cosine_by_layer"), ("spectrum", "singular_values")],
)
def test_the_legend_has_what_only_a_later_panel_shows(documents, verb, name):
    """The first model has not changed, so its panel is empty."""
    svg = inline_svg(view(documents[verb]).drawings[name], "seed")
    # In titles and labels no component stands alone.
    for label in ("attention", "mamba", "norm") if verb != "spectrum" else ("attention.q", "mamba.out_proj"):
        assert svg.count(f">{label}<") == 1, label


def test_targets_and_models_that_cannot_be_used_are_told_before_the_work(models, tmp_path):
    base, _, double, half = models
    for verb in ("weights", "direction", "spectrum", "trajectory"):
        taken = base / "config.json"
        for out in (taken / "out", taken / "a" / "b"):
            assert f"{taken} is not a writable folder" in refusal(verb, base, double, half, "--out", out)
        assert "no such folder" in refusal(verb, base, double, tmp_path / "nowhere")
        assert "this is not a folder" in refusal(verb, base, double, taken)
        assert "a server does not give weights" in refusal(verb, base, double, "http://localhost:8000/v1")
    assert list(tmp_path.iterdir()) == []


def test_a_model_has_one_name_with_and_without_the_folder_of_its_checkpoint(models, tmp_path):
    base, _, double, _ = models
    import_checkpoint(double, tmp_path / "ours")
    assert "given twice" in refusal("weights", base, tmp_path / "ours", tmp_path / "ours/checkpoint")
    (tmp_path / "ours/architecture.json").write_text('{"family": "llama"}')
    assert "architecture.json: no key 'vocab_size'" in refusal("weights", base, tmp_path / "ours")


def test_one_resample_has_no_standard_deviation(models):
    base, _, double, _ = models
    assert "--resamples 1: must be a whole number from 2" in refusal("cka", base, double, "--resamples", 1)


def test_cka_hides_upstream_warnings_before_it_imports_what_warns(models, monkeypatch):
    def stop():
        raise PrismError("stopped here")

    monkeypatch.delitem(sys.modules, "megatron_prism.analysis.cka.comparison", raising=False)
    monkeypatch.setattr(console, "setup_logging", stop)
    assert "stopped here" in refusal("cka", models[0], models[2])
    assert "megatron_prism.analysis.cka.comparison" not in sys.modules


def test_a_pair_without_any_cka_has_no_panel_of_one_minus_cka():
    def drawing(value):
        point = {"index": 0, "cka": value, "one_minus_cka": value and 1 - value, "bootstrap": None}
        pair = {"inputs": "web", "first": "x", "second": "y", "points": [point]}
        return by_layer({"inputs": [{"name": "web"}], "pairs": [pair]})

    assert drawing(None).height == drawing(0.5).height < drawing(0.999).height


def test_notes_on_dtypes_name_them_as_tables_do(models, tmp_path):
    other = make_checkpoint("granite-h", tmp_path / "other", torch.bfloat16)
    code, shown, notes = analyze("weights", models[0], other)
    assert code == 0
    assert " is bfloat16, but float32 in " in notes
    assert "torch." not in notes
    assert "bfloat16" in shown
