"""Every method against a ten-line reference, on both kinds of folder, in blocks that end inside rows."""

from __future__ import annotations

import json
import math
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_weighted_sum import exact_sum, reference, wrong
from tiny_models import make_checkpoint

from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.verify import compare_tensors
from megatron_prism.conversion.weights import MegatronWeights, open_weights
from megatron_prism.errors import CheckpointError, ConfigError, DataError
from megatron_prism.merging import blocks
from megatron_prism.merging import merge as merging
from megatron_prism.merging.decimals import exact_number
from megatron_prism.merging.merge import MergeSettings, merge, plan_merge
from megatron_prism.merging.methods import dare_mask
from megatron_prism.models.components import components

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Q, HEAD = "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that end inside rows and inside waves; tiny tensors would otherwise be one block each."""
    monkeypatch.setattr(blocks, "BLOCK", 300)
    monkeypatch.setattr(blocks, "WAVE", 5)
    monkeypatch.setattr(blocks, "MAX_THREADS", 3)


def variant(source: Path, folder: Path, seed: int, scale: float = 0.1) -> Path:
    """The same model after some training: every weight moved."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(folder / "model.safetensors")
    moved = {
        name: (tensor.float() + scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in state.items()
    }
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


def change(folder: Path, name: str, place: tuple[int, ...], value: float) -> None:
    state = load_file(folder / "model.safetensors")
    state[name][place] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def as_megatron(folder: Path) -> Path:
    out = folder.with_name(folder.name + "-megatron")
    out.mkdir()
    import_checkpoint(folder, out)
    return out


def run(out: Path, models: list[Path], base: Path | None = None, format: str | None = None, **settings):
    out.mkdir()
    return merge(plan_merge(MergeSettings(**settings), models, base=base, format=format), out)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    weights = open_weights(folder)
    return {name: weights.tensor(name).clone() for name in weights.shapes}


def linear_reference(states, weights):
    """The correctly rounded sum of whole tensors, in the dtypes of the first; test_weighted_sum.py proves it."""
    exact = [exact_number(weight, "weight") for weight in weights]
    return {
        name: exact_sum([state[name].flatten() for state in states], exact, first.dtype).view(first.shape)
        for name, first in states[0].items()
    }


def wrong_in_a_sample(found, states, weights, step: int) -> int:
    """How many of every `step`-th elements differ from the sum in fractions, computed without code of the merge."""
    exact = [Fraction(weight) for weight in weights]
    count = 0
    for name, tensor in found.items():
        terms = [state[name].flatten()[::step] for state in states]
        count += wrong(tensor.flatten()[::step], reference(terms, exact, tensor.dtype))
    return count


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype is expected[name].dtype, name
        assert torch.equal(found[name].view(torch.uint8), expected[name].view(torch.uint8)), name


def assert_close(found, expected):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=2e-6, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """Three fp32 models of one architecture, by name, and their tensors."""
    root = tmp_path_factory.mktemp("trio")
    first = make_checkpoint("granite", root / "base")
    folders = {"base": first, "mt": variant(first, root / "mt", 1), "rl": variant(first, root / "rl", 2)}
    return folders, {name: tensors(folder) for name, folder in folders.items()}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, "bf16") for family in ("granite", "llama", "granite4", "granite-h", "nemotron-h")),
        *((family, dtype) for family in ("llama", "granite-h") for dtype in ("fp16", "fp32")),
    ],
)
def test_linear_is_the_exact_sum_rounded_once(family, dtype, tmp_path):
    """Dense and hybrid, tied and untied, fused and not; from both kinds of folder to both kinds."""
    first = make_checkpoint(family, tmp_path / "a", DTYPES[dtype])
    second = variant(first, tmp_path / "b", 1)
    expected = linear_reference([tensors(first), tensors(second)], (0.15, 0.85))
    run(tmp_path / "hf", [first, second], weights=(0.15, 0.85))
    assert_same_bits(tensors(tmp_path / "hf"), expected)
    mixed = [as_megatron(first), second]
    run(tmp_path / "m", mixed, weights=(0.15, 0.85))
    assert isinstance(open_weights(tmp_path / "m"), MegatronWeights)
    assert_same_bits(tensors(tmp_path / "m"), expected)
    run(tmp_path / "back", mixed, format="hf", weights=(0.15, 0.85))
    assert not compare_tensors(open_weights(tmp_path / "back"), open_weights(tmp_path / "hf"))
    states, typed = [tensors(first), tensors(second)], ("0.15", "0.85")
    assert not wrong_in_a_sample(tensors(tmp_path / "hf"), states, typed, 11)
    # Sums in fp32, as in an earlier version, round some ties wrong, and the comparison must see it.
    in_fp32 = {name: (0.15 * states[0][name].float() + 0.85 * states[1][name].float()) for name in states[0]}
    rounded = {name: tensor.to(states[0][name].dtype) for name, tensor in in_fp32.items()}
    assert wrong_in_a_sample(rounded, states, typed, 11)


def test_the_first_models_files_are_copied(trio, tmp_path):
    folders, _ = trio
    run(tmp_path / "hf", [folders["base"], folders["mt"]], weights=(0.5, 0.5))
    run(tmp_path / "m", [folders["base"], folders["mt"]], format="megatron", weights=(0.5, 0.5))
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        source = (folders["base"] / file).read_bytes()
        assert (tmp_path / "hf" / file).read_bytes() == source
        assert (tmp_path / "m/hf" / file).read_bytes() == source


def test_three_models_of_three_dtypes_keep_that_of_the_first(tmp_path):
    first = make_checkpoint("llama", tmp_path / "a", torch.bfloat16)
    second = make_checkpoint("llama", tmp_path / "b", torch.float16)
    third = make_checkpoint("llama", tmp_path / "c")
    plan = plan_merge(MergeSettings(weights=(0.2, 0.3, 0.7)), [first, second, third])
    assert any("sum to 1.2" in remark for remark in plan.remarks)
    assert sum("keeps torch.bfloat16" in remark for remark in plan.remarks) == 2
    (tmp_path / "out").mkdir()
    merge(plan, tmp_path / "out")
    states = [tensors(folder) for folder in (first, second, third)]
    assert_same_bits(tensors(tmp_path / "out"), linear_reference(states, (0.2, 0.3, 0.7)))


def test_normalize_divides_by_the_sum_with_a_remark(trio, tmp_path):
    folders, states = trio
    settings = MergeSettings(weights=(1, 3), normalize=True)
    assert "divided by their sum 4" in settings.remarks()[0]
    run(tmp_path / "out", [folders["base"], folders["mt"]], weights=(1, 3), normalize=True)
    assert_same_bits(
        tensors(tmp_path / "out"), linear_reference([states["base"], states["mt"]], (0.25, 0.75))
    )


def test_components_can_have_other_weights(tmp_path):
    first = make_checkpoint("granite-h", tmp_path / "a", torch.bfloat16)
    second = variant(first, tmp_path / "b", 1)
    alphas = {"attention": 0.3, "mamba": 0.1, "norm": 0.0}
    run(tmp_path / "out", [first, second], weights=(0.5, 0.25), component_weights=alphas)
    a, b, merged = tensors(first), tensors(second), tensors(tmp_path / "out")
    named = components(open_weights(first).architecture)
    for name in a:
        alpha = alphas.get(named[name])
        pair = (0.5, 0.25) if alpha is None else (1 - alpha, alpha)
        assert_same_bits({name: merged[name]}, linear_reference([{name: a[name]}, {name: b[name]}], pair))
    assert set(named.values()) == {"attention", "mamba", "norm", "mlp", "embedding"}


@pytest.mark.parametrize("format", ["hf", "megatron"])
def test_a_list_of_alphas_is_one_pass_and_as_many_results(format, trio, tmp_path, monkeypatch):
    folders, states = trio
    read = []
    honest = merging.TensorBytes.read

    def counted(self, start, out):
        read.append(len(out))
        honest(self, start, out)

    monkeypatch.setattr(merging.TensorBytes, "read", counted)
    metrics = run(tmp_path / "out", [folders["base"], folders["mt"]], format=format, alphas=(0.0, 0.25, 1.5))
    assert metrics["bytes"] == 3 * 4 * 25_216
    assert sum(read) == 2 * 4 * 25_216
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "alpha-0",
        "alpha-0.25",
        "alpha-1.5",
    ]
    for alpha in (0.0, 0.25, 1.5):
        expected = linear_reference([states["base"], states["mt"]], (1 - alpha, alpha))
        assert_same_bits(tensors(tmp_path / f"out/alpha-{alpha:g}"), expected)


def test_interpolation_is_the_papers_plane(trio, tmp_path):
    folders, states = trio
    base, mt, rl = (states[name] for name in ("base", "mt", "rl"))
    for number, (a, b) in enumerate(((0.7, 0.25), (1.0, 0.0), (1.0, 1.0))):
        out = tmp_path / str(number)
        run(out, [folders["mt"], folders["rl"]], folders["base"], method="interpolate", weights=(a, b))
        found = tensors(out)
        shares = [1 - Fraction(str(a)), Fraction(str(a)) - Fraction(str(b)), Fraction(str(b))]
        assert_close(
            found, {n: float(shares[0]) * base[n] + float(shares[1]) * mt[n] + b * rl[n] for n in base}
        )
        assert not wrong_in_a_sample(found, (base, mt, rl), shares, 41)
    assert_same_bits(tensors(tmp_path / "1"), mt)
    assert_same_bits(tensors(tmp_path / "2"), rl)


def test_task_arithmetic_adds_changes(trio, tmp_path):
    folders, states = trio
    base = states["base"]
    models = [folders["mt"], folders["rl"]]
    run(tmp_path / "out", models, folders["base"], method="task-arithmetic", weights=(0.4, -0.5))
    expected = {
        name: base[name].double()
        + 0.4 * (states["mt"][name].double() - base[name].double())
        - 0.5 * (states["rl"][name].double() - base[name].double())
        for name in base
    }
    found = tensors(tmp_path / "out")
    assert_close(found, expected)
    shares = ("1.1", "0.4", "-0.5")
    assert not wrong_in_a_sample(found, (base, states["mt"], states["rl"]), shares, 41)


def test_slerp_interpolates_along_the_arc(trio, tmp_path):
    folders, states = trio
    run(tmp_path / "out", [folders["base"], folders["mt"]], method="slerp", weights=(0.7, 0.3))
    merged, curved = tensors(tmp_path / "out"), 0
    for name, first in states["base"].items():
        a, b = first.double(), states["mt"][name].double()
        cosine = float((a * b).sum() / (a.norm() * b.norm()))
        shares = (0.7, 0.3)
        if cosine < 0.9995:
            angle, curved = math.acos(cosine), curved + 1
            shares = (math.sin(0.7 * angle) / math.sin(angle), math.sin(0.3 * angle) / math.sin(angle))
        assert_close({name: merged[name]}, {name: shares[0] * a + shares[1] * b})
    assert curved > 10


def ties_reference(base, models, weights, density):
    trimmed = []
    for model, weight in zip(models, weights, strict=True):
        delta = model - base
        keep = max(1, round(density * delta.numel()))
        threshold = delta.abs().flatten().topk(keep).values[-1]
        trimmed.append(torch.where(delta.abs() >= threshold, delta, 0.0) * weight)
    stacked = torch.stack(trimmed)
    agrees = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return base + (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@pytest.mark.parametrize("density", [0.2, 1.0, 1e-9])
def test_ties_trims_elects_and_merges(density, trio, tmp_path):
    folders, states = trio
    models = [folders["mt"], folders["rl"]]
    run(tmp_path / "out", models, folders["base"], method="ties", weights=(0.9, 0.6), density=density)
    expected = {
        name: ties_reference(
            states["base"][name], [states["mt"][name], states["rl"][name]], (0.9, 0.6), density
        )
        for name in states["base"]
    }
    assert_close(tensors(tmp_path / "out"), expected)


def test_dare_drops_and_rescales_the_same_wherever_blocks_end(trio, tmp_path, monkeypatch):
    folders, states = trio
    models = [folders["mt"], folders["rl"]]
    settings = {"method": "dare", "weights": (0.9, 0.6), "density": 0.3, "seed": 5}
    run(tmp_path / "out", models, folders["base"], **settings)
    base, expected = states["base"], {}
    for name, first in base.items():
        total = first.clone()
        for place, (model, weight) in enumerate((("mt", 0.9), ("rl", 0.6))):
            mask = dare_mask(5, name, place, first=0, count=first.numel(), density=0.3).view(first.shape)
            total = total + weight * mask * (states[model][name] - first) / 0.3
        expected[name] = total
    merged = tensors(tmp_path / "out")
    assert_close(merged, expected)
    monkeypatch.setattr(blocks, "BLOCK", 1 << 16)
    run(tmp_path / "m", models, folders["base"], "megatron", **settings)
    assert_same_bits(tensors(tmp_path / "m"), merged)
    run(tmp_path / "other", models, folders["base"], **(settings | {"seed": 6}))
    assert any(not torch.equal(merged[name], tensor) for name, tensor in tensors(tmp_path / "other").items())


def test_alpha_of_a_component_in_a_change_is_the_last_models(trio, tmp_path):
    folders, states = trio
    models = [folders["mt"], folders["rl"]]
    options = {"method": "task-arithmetic", "component_weights": {"mlp": 0.0}}
    run(tmp_path / "out", models, folders["base"], weights=(0.4, 0.5), **options)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = states["base"][name] + 0.4 * (states["mt"][name] - states["base"][name])
    assert_close({name: tensors(tmp_path / "out")[name]}, {name: expected})


def test_a_checkpoint_cut_along_columns_merges_the_same(tmp_path, monkeypatch):
    """Tensors that a tensor-parallel run cut along columns are not stored by rows, so they are read into memory."""
    first = make_checkpoint("granite", tmp_path / "a")
    second = variant(first, tmp_path / "b", 1)
    monkeypatch.setattr(MegatronWeights, "ranges", lambda self, name: None)
    run(tmp_path / "out", [as_megatron(first), second], weights=(0.3, 0.7))
    monkeypatch.undo()
    expected = linear_reference([tensors(first), tensors(second)], (0.3, 0.7))
    assert_same_bits(tensors(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("granite", {"vocab_size": 64}, "vocab_size=64"),
        ("granite", {"hidden_size": 64}, "hidden_size=64"),
        ("granite-untied", {}, "tie_word_embeddings=False"),
        ("granite", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
        ("llama", {}, "family=llama"),
    ],
)
def test_mismatches_are_found_before_any_tensor_is_read(family, changes, named, trio, tmp_path, monkeypatch):
    folders, _ = trio
    other = make_checkpoint(family, tmp_path / "other", **changes)

    def refuse(*args, **kwargs):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(merging.TensorBytes, "read", refuse)
    monkeypatch.setattr("megatron_prism.conversion.hf_folder.reader.HFFolder.read", refuse)
    # Only the header is left, so opening the weights would raise another error first.
    path = other / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(CheckpointError, match=f"other: {named}.*base has"):
        plan_merge(MergeSettings(weights=(0.5, 0.5)), [folders["base"], other])


def test_tokenizers_must_agree(trio, tmp_path):
    folders, _ = trio
    other = tmp_path / "other"
    shutil.copytree(folders["mt"], other)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    path.write_text(json.dumps(tokenizer | {"truncation": {"max_length": 7}}))
    settings = MergeSettings(weights=(0.5, 0.5))
    plan_merge(settings, [folders["base"], other])
    path.write_text(json.dumps(tokenizer | {"pre_tokenizer": None}))
    with pytest.raises(CheckpointError, match=r"splits text differently from .*different: 'pre_tokenizer'"):
        plan_merge(settings, [folders["base"], other])
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"other/tokenizer\.json: token '[AB]' has the id"):
        plan_merge(settings, [folders["base"], other])
    path.unlink()
    assert any("has no tokenizer" in each for each in plan_merge(settings, [folders["base"], other]).remarks)


def test_max_position_embeddings_may_differ_with_a_remark(trio, tmp_path):
    folders, _ = trio
    other = make_checkpoint("granite", tmp_path / "other", max_position_embeddings=256)
    plan = plan_merge(MergeSettings(weights=(0.5, 0.5)), [folders["base"], other])
    assert any("keeps 128" in remark for remark in plan.remarks)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("method", "weights"), [("linear", (0.5, 0.0)), ("ties", (1.0,)), ("dare", (1.0,)), ("slerp", (0.5, 0.5))]
)
def test_a_nan_is_named(method, weights, value, trio, tmp_path):
    folders, _ = trio
    sick = variant(folders["base"], tmp_path / "sick", 1)
    change(sick, Q, (7, 3), value)
    base, models = folders["base"], [sick]
    if method in ("linear", "slerp"):
        base, models = None, [folders["base"], sick]
    density = None if base is None else 0.1
    with pytest.raises(CheckpointError, match=rf"sick: tensor '{Q}' holds (nan|inf) in row 7"):
        run(tmp_path / "out", models, base, method=method, weights=weights, density=density)


def test_weights_that_overflow_the_dtype_are_refused(tmp_path):
    first = make_checkpoint("llama", tmp_path / "a", torch.float16)
    second = variant(first, tmp_path / "b", 1)
    with pytest.raises(CheckpointError, match=r"more than torch\.float16 can hold"):
        run(tmp_path / "out", [first, second], weights=(1e6, 0.0))


@pytest.mark.parametrize(
    ("settings", "models", "named"),
    [
        ({"method": "liner", "weights": (1, 1)}, 2, "did you mean 'linear'"),
        ({"weights": (1, 1)}, 3, "2 weights for 3 models"),
        ({"weights": (1,)}, 1, "two or more"),
        ({}, 2, "either a weight for each model"),
        ({"weights": (1, math.nan)}, 2, "weight number 2: 'nan' is not a finite number"),
        ({"weights": (1, "1/0")}, 2, "weight number 2: '1/0' is not a number"),
        ({"weights": (1, "1e-999999999")}, 2, "more than 400 digits"),
        ({"weights": (1, True)}, 2, "weight number 2: True is not a number"),
        ({"weights": (1, "1e350")}, 2, "is too large"),
        ({"weights": (1, 1), "alphas": (0.5,)}, 2, "or a list of alphas"),
        ({"alphas": (0.5, 0.5)}, 2, "twice"),
        ({"alphas": (0.5, "1/2")}, 2, "twice"),
        ({"alphas": (0.5,)}, 3, "two models are needed"),
        ({"alphas": (0.5,), "normalize": True}, 2, "does not allow it"),
        ({"weights": (1, -1), "normalize": True}, 2, "sum to 0"),
        ({"weights": (1, 1), "component_weights": {"attn": 1}}, 2, "attention"),
        ({"weights": (1, 1, 1), "component_weights": {"mlp": 1}}, 3, "component weights need two models"),
        ({"weights": (1, 1), "component_weights": {"mamba": 1}}, 2, "has no such component"),
        ({"weights": (1, 1), "density": 0.5}, 2, "only ties and dare"),
        ({"method": "ties", "weights": (1,)}, 1, r"in \(0, 1\]"),
        ({"method": "dare", "weights": (1,), "density": 0.0}, 1, r"in \(0, 1\]"),
        ({"method": "task-arithmetic", "weights": (1, 1)}, 2, "needs a base"),
        ({"method": "slerp", "weights": (1, 1)}, 2, "1 - t and t"),
        ({"method": "slerp", "weights": (1, 1, 1)}, 3, "takes 2 models"),
        ({"method": "interpolate", "weights": (1, 1), "component_weights": {"mlp": 1}}, 2, r"pair \(a, b\)"),
    ],
)
def test_mistakes_are_found_before_reading(settings, models, named, trio):
    folders, _ = trio
    with pytest.raises(ConfigError, match=named):
        plan_merge(MergeSettings(**settings), [folders["base"], folders["mt"], folders["rl"]][:models])


def test_other_mistakes(trio, tmp_path, monkeypatch):
    folders, _ = trio
    pair = [folders["base"], folders["mt"]]
    with pytest.raises(ConfigError, match="did you mean 'megatron'"):
        plan_merge(MergeSettings(weights=(1, 0)), pair, format="megatrn")
    with pytest.raises(ConfigError, match="linear has no base"):
        plan_merge(MergeSettings(weights=(1, 0)), pair, base=folders["rl"])
    with pytest.raises(CheckpointError, match="not a model folder"):
        plan_merge(MergeSettings(weights=(1, 0)), [folders["base"], tmp_path])
    bare = as_megatron(variant(folders["base"], tmp_path / "bare", 1))
    shutil.rmtree(bare / "hf")
    with pytest.raises(ConfigError, match="has no hf/"):
        plan_merge(MergeSettings(weights=(1, 0)), [bare, bare], format="hf")
    plan = plan_merge(MergeSettings(weights=(1, 0)), pair)
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match="GB, but the disk has"):
        merge(plan, tmp_path)


def test_alphas_outside_0_to_1_give_a_remark():
    assert MergeSettings(alphas=(0.0, 1.0)).remarks() == []
    assert "outside [0, 1]" in MergeSettings(alphas=(0.5, 1.3)).remarks()[0]
    assert "outside [0, 1]" in MergeSettings(weights=(-0.3, 1.3)).remarks()[0]
    assert MergeSettings(method="task-arithmetic", weights=(-1.0,)).remarks() == []
