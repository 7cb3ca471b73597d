"""`analyze weights` on whole folders of every kind, against transformers' own state dicts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint
from transformers import AutoModelForCausalLM

from megatron_prism.analysis.change import THRESHOLDS
from megatron_prism.analysis.weight_summary import analyze_weights
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import CheckpointError, ConfigError, DataError, PrismError
from megatron_prism.merging import blocks

FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 300)
    monkeypatch.setattr(blocks, "WAVE", 5)


def trained(source: Path, folder: Path, seed: int, scale: float = 0.05) -> Path:
    """The model after some training: every weight moved relative to its size, and a tenth of them not at all."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(folder / FILE)
    moved = {}
    for name, tensor in state.items():
        steps = scale * torch.randn(tensor.shape, generator=generator)
        steps[torch.rand(tensor.shape, generator=generator) < 0.1] = 0
        moved[name] = (tensor.float() * (1 + steps)).to(tensor.dtype)
    save_file(moved, folder / FILE, {"format": "pt"})
    return folder


def damage(folder: Path, name: str, value: float) -> None:
    state = load_file(folder / FILE)
    state[name].view(-1)[40] = value
    save_file(state, folder / FILE, {"format": "pt"})


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    base = make_checkpoint("llama", root / "base", torch.bfloat16)
    return base, trained(base, root / "midtrained", 1)


def rows_of(folder: Path, name: str, count: int) -> dict[str, tuple[str, int, int]]:
    """Sub-component -> (component, first row, rows) of a tensor, by the config of transformers."""
    config = json.loads((folder / "config.json").read_text())
    last = name.removesuffix(".weight").rpartition(".")[2]
    if last == "in_proj":
        heads = config.get("mamba_n_heads", config.get("mamba_num_heads"))
        size = config.get("mamba_d_head", config.get("mamba_head_dim"))
        groups = config.get("mamba_n_groups", config.get("n_groups"))
        group = groups * config.get("mamba_d_state", config.get("ssm_state_size"))
        inner = heads * size
        ends, found = 0, {}
        for part, rows in (("z", inner), ("x", inner), ("B", group), ("C", group), ("dt", heads)):
            found[f"mamba.in_proj.{part}"] = ("mamba", ends, rows)
            ends += rows
        assert ends == count
        return found
    if last == "input_linear":
        return {"mlp.gate": ("mlp", 0, count // 2), "mlp.up": ("mlp", count // 2, count // 2)}
    named = {
        **{f"{each}_proj": ("attention", each) for each in "qkvo"},
        **{f"{each}_proj": ("mlp", each) for each in ("gate", "up", "down")},
        **{"output_linear": ("mlp", "down"), "out_proj": ("mamba", "out_proj")},
        **{"A_log": ("mamba", "A_log"), "D": ("mamba", "D"), "dt_bias": ("mamba", "dt")},
        **{"embed_tokens": ("embedding", "embedding"), "embeddings": ("embedding", "embedding")},
        "lm_head": ("head", "head"),
    }
    if "conv1d" in name:
        component, part = "mamba", "conv1d"
    else:
        component, part = named.get(last, ("norm", "norm"))
    return {f"{component}.{part}": (component, 0, count)}


def norms(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Mean of the deltas, and the delta of all together."""
    deltas = [float((b - a).norm() / a.norm()) for a, b in pairs]
    both = sum(float((b - a).norm()) ** 2 for a, b in pairs) / sum(float(a.norm()) ** 2 for a, _ in pairs)
    return sum(deltas) / len(deltas), math.sqrt(both)


@pytest.mark.parametrize("family", ["llama", "granite", "granite4", "granite-h", "nemotron-h"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_sub_component_against_the_state_dicts_of_transformers(family, dtype, tmp_path):
    base = make_checkpoint(family, tmp_path / "base", dtype)
    other = trained(base, tmp_path / "other", 1)
    old, new = state_dict(base), state_dict(other)
    document = analyze_weights(base, [other]).document
    (found,) = document["models"]

    by_part: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    by_component: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for name, tensor in old.items():
        for part, (_, first, rows) in rows_of(base, name, len(tensor)).items():
            by_part.setdefault(part, []).append(
                (tensor[first : first + rows], new[name][first : first + rows])
            )
        (component,) = {component for component, _, _ in rows_of(base, name, len(tensor)).values()}
        by_component.setdefault(component, []).append((tensor, new[name]))
    for measured, expected in ((found["sub_components"], by_part), (found["components"], by_component)):
        assert measured.keys() == expected.keys()
        for key, pairs in expected.items():
            mean, norm = norms(pairs)
            assert measured[key]["mean_delta"] == pytest.approx(mean, rel=1e-6), key
            assert measured[key]["norm_delta"] == pytest.approx(norm, rel=1e-6), key
            assert measured[key]["elements"] == sum(a.numel() for a, _ in pairs)
            for threshold, share in zip(THRESHOLDS, measured[key]["unchanged"], strict=True):
                below = sum(
                    int((((b - a).abs() < threshold * a.abs()) | ((a == 0) & (b == 0))).sum())
                    for a, b in pairs
                )
                assert share == pytest.approx(below / measured[key]["elements"], abs=1e-12), (key, threshold)
    every = [(tensor, new[name]) for name, tensor in old.items()]
    mean, norm = norms(every)
    assert found["all"]["mean_delta"] == pytest.approx(mean, rel=1e-6)
    assert found["all"]["norm_delta"] == pytest.approx(norm, rel=1e-6)
    # The two totals are different numbers, so a mix-up would show.
    assert abs(mean / norm - 1) > 1e-4


def test_layers_are_those_of_the_names(pair):
    base, other = pair
    (found,) = analyze_weights(base, [other]).document["models"]
    old, new = state_dict(base), state_dict(other)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    for row in found["layers"]:
        pairs = [(old[n], new[n]) for n in old if f".layers.{row['layer']}.mlp." in n]
        assert row["mlp"]["mean_delta"] == pytest.approx(norms(pairs)[0], rel=1e-6)
        assert row.keys() == {"layer", "attention", "mlp", "norm"}


def test_both_kinds_of_folder_give_the_same_numbers(pair, tmp_path):
    base, other = pair
    for folder in pair:
        (tmp_path / folder.name).mkdir()
        import_checkpoint(folder, tmp_path / folder.name)
    expected = analyze_weights(base, [other])
    found = analyze_weights(tmp_path / "base", [other])
    again = analyze_weights(tmp_path / "base", [tmp_path / "midtrained"])
    assert found.rows == expected.rows == again.rows
    assert found.summary == expected.summary


def test_many_checkpoints_in_one_pass_are_what_each_is_alone(pair, tmp_path):
    base, other = pair
    second = trained(base, tmp_path / "second", 2)
    both = analyze_weights(base, [other, second])
    alone = [analyze_weights(base, [folder]) for folder in (other, second)]
    assert [*both.rows["tensors"]] == [*alone[0].rows["tensors"], *alone[1].rows["tensors"]]
    assert both.summary["models"]["midtrained"] != both.summary["models"]["second"]


def test_models_of_one_name_are_told_apart(pair, tmp_path):
    base, other = pair
    for run in ("a", "b"):
        shutil.copytree(other, tmp_path / run / "model")
    damage(tmp_path / "b" / "model", "lm_head.weight", 3.0)
    found = analyze_weights(base, [tmp_path / "a" / "model", tmp_path / "b" / "model"])
    assert list(found.summary["models"]) == ["a/model", "b/model"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_number_that_is_none_is_named(pair, tmp_path, value, place):
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair]
    damage(copies[place], "model.layers.1.mlp.up_proj.weight", value)
    with pytest.raises(
        CheckpointError, match=rf"{copies[place]}: tensor 'model.layers.1.mlp.up_proj.weight'.*row 1"
    ):
        analyze_weights(copies[0], [copies[1]])


def test_what_cannot_be_compared_is_one_line(pair, tmp_path):
    base, other = pair
    with pytest.raises(ConfigError, match="is the base itself"):
        analyze_weights(base, [base])
    with pytest.raises(ConfigError, match="given twice"):
        analyze_weights(base, [other, other])
    with pytest.raises(ConfigError, match="two or more models"):
        analyze_weights(base, [])
    wider = make_checkpoint("llama", tmp_path / "wider", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"ffn_hidden_size=64, but .*=48"):
        analyze_weights(base, [wider])
    hybrid = make_checkpoint("granite-h", tmp_path / "hybrid")
    with pytest.raises(CheckpointError, match=r"only models of one architecture"):
        analyze_weights(base, [hybrid])
    with pytest.raises(PrismError, match=r"neither architecture\.json"):
        analyze_weights(base, [tmp_path])
    # All other tensors of a tied model have the same shapes, but it has no head to compare.
    tied = make_checkpoint("llama", tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        analyze_weights(base, [tied])


def test_a_missing_shard_is_named(pair, tmp_path):
    base, other = pair
    folder = Path(shutil.copytree(other, tmp_path / "sharded"))
    state = load_file(folder / FILE)
    names = sorted(state)
    (folder / FILE).unlink()
    shards = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, mine in shards.items():
        save_file({name: state[name] for name in mine}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, mine in shards.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert analyze_weights(base, [folder]).rows["tensors"][0]["delta"]
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises((CheckpointError, DataError), match=r"model-00002-of-00002.safetensors"):
        analyze_weights(base, [folder])


def test_other_positions_are_a_remark(pair, tmp_path):
    base, other = pair
    longer = Path(shutil.copytree(other, tmp_path / "longer"))
    config = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    remarks = analyze_weights(base, [longer]).remarks
    assert any("max_position_embeddings=512" in remark for remark in remarks)
    assert not analyze_weights(base, [other]).remarks
