"""Quantization with the real ModelOpt, on tiny models that transformers itself made; results are read independently."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_prism.conversion.quantization import modelopt_calls, quantize
from megatron_prism.conversion.quantization.calibration import windows
from megatron_prism.conversion.quantization.check import check_quantized
from megatron_prism.conversion.quantization.quantize import HELD_OUT, quantize_checkpoint
from megatron_prism.conversion.quantization.schemes import SCHEMES, scheme_named
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.errors import CheckpointError, ConfigError, DataError
from megatron_prism.platform.hardware import has_gpu

SAMPLES, LENGTH = 4, 16
STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
# Rounding to 3 mantissa bits, or to 1/127 of a row's largest value, of weights that are normally distributed.
EXPECTED_ERROR = {"fp8": (0.02, 0.03), "int8": (0.004, 0.008)}
CHARACTERS = "".join(chr(33 + i) for i in range(59))


def made_text(documents=3, length=120):
    generator = random.Random(1)
    return ["".join(generator.choices(CHARACTERS, k=length)) for _ in range(documents)]


def run(source, out, scheme="fp8", **changes):
    arguments = {"texts": made_text(), "samples": SAMPLES, "length": LENGTH} | changes
    return quantize_checkpoint(source, out, scheme, **arguments)


def nothing_left(out):
    return not out.exists() and not list(out.parent.glob(f"{out.name}*"))


def dequantized(tensors, layer):
    scale = tensors[f"{layer}.weight_scale"].float()
    return tensors[f"{layer}.weight"].float() * (scale if scale.dim() == 0 else scale[:, None])


def quantized_layers(tensors):
    return {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    found = {}
    for name in FAMILIES:
        found[name] = make_checkpoint(name, root / name, torch.bfloat16)
    return found


@pytest.fixture(scope="module")
def llama(sources, tmp_path_factory):
    """A source folder, and its quantized folders of both schemes."""
    root = tmp_path_factory.mktemp("llama")
    for scheme in STORED:
        run(sources["llama"], root / scheme, scheme)
    return sources["llama"], root


def test_a_config_that_names_another_dtype_does_not_round_the_weights(llama, tmp_path):
    """The stored weights are quantized, and the written config names their dtype."""
    original, root = llama
    source = tmp_path / "source"
    shutil.copytree(original, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    (source / "added_tokens.json").write_text(json.dumps({"<|new|>": config["vocab_size"]}))
    remarks = run(source, tmp_path / "out")["remarks"]
    assert any("token '<|new|>' of its tokenizer has the id" in each for each in remarks)
    assert any("dtype='float16', but the tensors are bfloat16" in each for each in remarks)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    found, expected = (load_file(each / "model.safetensors") for each in (tmp_path / "out", root / "fp8"))
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in expected)


def test_a_source_that_transformers_cannot_load_is_one_line(sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(sources["llama"], source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"pad_token_id": config["vocab_size"]}))
    with pytest.raises(CheckpointError, match=f"{source}: transformers cannot load this model .*Padding_idx"):
        run(source, tmp_path / "out")
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("scheme", STORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, scheme, sources, tmp_path):
    source, out = sources[family], tmp_path / "out"
    metrics = run(source, out, scheme)
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(source)
    linear = [name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)]
    layers = quantized_layers(after)
    assert len(layers) == metrics["quantized_layers"] == len(linear) - 1, "all linear layers but the head"
    assert "lm_head" not in layers

    low, high = EXPECTED_ERROR[scheme]
    for layer in layers:
        assert after[f"{layer}.weight"].dtype is STORED[scheme]
        original = before[f"{layer}.weight"].float()
        error = float((dequantized(after, layer) - original).norm() / original.norm())
        assert low < error < high, layer
        assert error <= metrics["worst_weight_error"] + 1e-6
        assert float(after[f"{layer}.input_scale"]) > 0
    assert low < metrics["weight_error"] <= metrics["worst_weight_error"]
    untouched = {name for name in before if name.removesuffix(".weight") not in layers}
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    companions = {f"{layer}.{part}" for layer in layers for part in ("weight_scale", "input_scale")}
    assert set(after) == set(before) | companions

    config = json.loads((out / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert quantization["quant_method"] == "modelopt"
    # The layers, by the names in the file, that a reader must not treat as quantized.
    matrices = {
        name.removesuffix(".weight")
        for name in untouched
        if name.endswith(".weight") and before[name].dim() > 1
    }
    assert quantization["ignore"] == sorted(matrices | {"lm_head"})
    details = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert details["exclude_modules"] == quantization["ignore"]
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()

    assert metrics["kept_layers"] == {}
    assert metrics["bytes_before"] == (source / "model.safetensors").stat().st_size
    assert metrics["bytes_after"] == (out / "model.safetensors").stat().st_size < metrics["bytes_before"]
    assert 0 < metrics["logit_mean_change"] < metrics["logit_max_change"] < metrics["logit_largest"]
    assert 0.5 < metrics["top1_agreement"] <= 1
    assert abs(metrics["loss_after"] - metrics["loss_before"]) < 0.2
    assert metrics["held_out_tokens"] == HELD_OUT * LENGTH


@pytest.mark.parametrize("scheme", STORED)
@pytest.mark.parametrize("family", ["llama", "nemotron-h"])
def test_the_measured_change_is_that_of_the_written_weights(family, scheme, tmp_path):
    """The stored weights and input scales, applied here by hand to the original model, give the same change."""
    source, out = make_checkpoint(family, tmp_path / "source"), tmp_path / "out"
    text = made_text()
    metrics = run(source, out, scheme, texts=text)
    stored = load_file(out / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    ids = windows(text, source, count=SAMPLES + HELD_OUT, length=LENGTH, vocab_size=61)[SAMPLES:]
    with torch.no_grad():
        before = model(torch.tensor(ids), use_cache=False).logits

        def rounded(scale):
            def hook(module, arguments):
                scaled = arguments[0] / scale
                if scheme == "fp8":
                    return (scaled.clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)
                return (scaled.round().clamp(-128, 127) * scale,)

            return hook

        for name, module in model.named_modules():
            layer = name.replace("model.", "backbone.", 1) if family == "nemotron-h" else name
            if layer in quantized_layers(stored):
                module.weight.copy_(dequantized(stored, layer))
                module.register_forward_pre_hook(rounded(stored[f"{layer}.input_scale"]))
        after = model(torch.tensor(ids), use_cache=False).logits
    off = (after - before).abs()
    # A value on a rounding boundary may be rounded the other way here.
    assert float(off.mean()) == pytest.approx(metrics["logit_mean_change"], rel=0.05)
    assert float(off.max()) == pytest.approx(metrics["logit_max_change"], rel=0.3)
    assert float((after.argmax(-1) == before.argmax(-1)).float().mean()) == pytest.approx(
        metrics["top1_agreement"], abs=0.05
    )


LAYER = "model.layers.1.mlp.up_proj"


def scaled(name, factor):
    return lambda tensors: tensors[name].mul_(factor)


DAMAGE = {
    "weight scale": (scaled(f"{LAYER}.weight_scale", 1.2), "reads back wrong"),
    "nan scale": (scaled(f"{LAYER}.weight_scale", float("nan")), "reads back wrong"),
    "input scale": (scaled(f"{LAYER}.input_scale", 1.5), "was measured"),
    "one weight": (
        lambda t: t[f"{LAYER}.weight"].view(torch.uint8)[5, 3].bitwise_xor_(0x80),
        r"weight \[5, 3\]",
    ),
    "unquantized": (scaled("model.norm.weight", 1.1), "is not quantized, but"),
    "missing": (lambda tensors: tensors.pop(f"{LAYER}.input_scale"), "was not written"),
    "unknown": (lambda tensors: tensors.update(more=torch.ones(1)), "is not part of this checkpoint"),
    "not quantized": (
        lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(48, 32, dtype=torch.bfloat16)}),
        "bfloat16, not",
    ),
    "wrong shape": (
        lambda tensors: tensors.update({f"{LAYER}.weight_scale": torch.ones(7)}),
        "wrong shape",
    ),
}


@pytest.mark.parametrize("scheme", STORED)
@pytest.mark.parametrize("what", [None, *DAMAGE])
def test_damage_is_found(what, scheme, llama, tmp_path):
    source, root = llama
    tensors = load_file(root / scheme / "model.safetensors")
    layers = quantized_layers(tensors)
    scales = {layer: float(tensors[f"{layer}.input_scale"]) for layer in layers}

    def check():
        save_file(tensors, tmp_path / "model.safetensors")
        return check_quantized(
            HFWeights(source), tmp_path, SCHEMES[scheme], layers=layers, input_scales=scales
        )

    if what is None:
        assert check().worst_layer in layers
        return
    damage, message = DAMAGE[what]
    damage(tensors)
    with pytest.raises(CheckpointError, match=message):
        check()


def test_a_wrongly_written_scale_leaves_no_output(sources, tmp_path, monkeypatch):
    export = modelopt_calls.export

    def damaged(model, folder, *rest):
        export(model, folder, *rest)
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{LAYER}.weight_scale"] *= 2
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(quantize, "export", damaged)
    with pytest.raises(CheckpointError, match=f"'{LAYER}' reads back wrong"):
        run(sources["llama"], tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_ctrl_c_leaves_no_output(sources, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "check_quantized", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(sources["llama"], tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_a_failure_of_modelopt_is_one_line(sources, tmp_path, monkeypatch):
    """Granite's Mamba convolution would be such a case if it were not kept."""
    monkeypatch.setattr(modelopt_calls, "KEPT", ())
    with pytest.raises(ConfigError, match=r"ModelOpt quantizes layer 'model\.layers\.0\.mamba\.conv1d'"):
        run(sources["granite-h"], tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_layers_the_format_cannot_hold_are_kept(sources, tmp_path):
    """A row of zeros has no INT8 scale."""
    source = tmp_path / "source"
    shutil.copytree(sources["nemotron-h"], source)
    tensors = load_file(source / "model.safetensors")
    layer = "backbone.layers.1.mixer.up_proj"
    tensors[f"{layer}.weight"][3] = 0
    # A checkpoint may keep single tensors in a finer dtype than its config's.
    tensors["backbone.layers.0.mixer.A_log"] = tensors["backbone.layers.0.mixer.A_log"].float() + 1e-5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})

    metrics = run(source, tmp_path / "int8", "int8")
    assert metrics["kept_layers"] == {layer: "a row is all zeros"}
    assert metrics["quantized_layers"] == 13
    written = load_file(tmp_path / "int8" / "model.safetensors")
    assert torch.equal(written[f"{layer}.weight"], tensors[f"{layer}.weight"])
    assert (
        layer in json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]["ignore"]
    )
    name = "backbone.layers.0.mixer.A_log"
    assert written[name].dtype is torch.float32
    assert torch.equal(written[name], tensors[name])
    (remark,) = metrics["remarks"]
    assert remark.startswith(f"1 tensors, such as '{name}', keep the source's dtype torch.float32")
    assert run(source, tmp_path / "fp8", "fp8")["kept_layers"] == {}


def test_a_source_in_several_files(sources, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(sources["llama"], source)
    (source / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(sources["llama"], dtype="auto")
    model.save_pretrained(source, max_shard_size="20KB")
    (source / "generation_config.json").unlink()
    # Mistral's folders hold their weights twice. This copy is not replaced.
    shutil.copy(sources["llama"] / "model.safetensors", source / "consolidated.safetensors")
    capsys.readouterr()
    metrics = run(source, tmp_path / "out")
    shards = list(source.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert metrics["bytes_before"] == sum(path.stat().st_size for path in shards)
    assert not (tmp_path / "out" / "generation_config.json").exists()
    assert capsys.readouterr() == ("", "")


REFUSED = {
    "unknown scheme": ({"scheme": "fp9"}, r"scheme='fp9': unknown; did you mean 'fp8'\?"),
    "no text": ({"texts": None}, "calibration text is needed; name a file"),
    "short text": (
        {"texts": ["abc", "def"]},
        "text has 8 tokens, but 12 windows of length=16 need 192",
    ),
    "no samples": ({"samples": 0}, "samples=0, length=16: use 1 or more"),
    "too long": ({"length": 129}, "length=129: use 1 or more samples, and a length from 2 to 128"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, sources, tmp_path):
    changes, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        run(sources["llama"], tmp_path / "out", **changes)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp8"])
@pytest.mark.skipif(has_gpu(), reason="asks what happens without a GPU")
def test_a_scheme_for_gpus(scheme):
    with pytest.raises(ConfigError, match=f"scheme='{scheme}': ModelOpt needs a CUDA device.* use fp8, int8"):
        scheme_named(scheme)


def test_without_modelopt(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'megatron-prism\[modelopt\]'"):
        run(sources["llama"], tmp_path / "out")


def test_a_quantized_model_is_refused(llama, tmp_path):
    with pytest.raises(ConfigError, match=r"quant_method='modelopt'\), so the model is already quantized"):
        run(llama[1] / "fp8", tmp_path / "out")


def test_a_full_folder_is_refused(sources, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        run(sources["llama"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_damaged_sources_are_refused(sources, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        run(tmp_path / "absent", tmp_path / "out")
    source = tmp_path / "source"
    shutil.copytree(sources["llama"], source)
    tensors = load_file(source / "model.safetensors")
    tensors[f"{LAYER}.weight"][0, 0] = float("inf")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"'{LAYER}.weight' holds a NaN or an infinite number"):
        run(source, tmp_path / "out")
    (source / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: missing, and so is tokenizer\.model"):
        run(source, tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_windows_begin_with_the_start_token(sources, tmp_path):
    folder = sources["llama"]
    assert windows(["ABC", "DE", "FGHI"], folder, count=2, length=4, vocab_size=61) == [
        [34, 35, 36, 0],
        [37, 38, 0, 39],
    ]
    with pytest.raises(ConfigError, match="gives the id 36, but the model has vocab_size=36"):
        windows(["ABC"], folder, count=1, length=4, vocab_size=36)

    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 1)]
    )
    tokenizer.bos_token = "<|pad|>"
    tokenizer.save_pretrained(tmp_path)
    assert windows(["ABC", "DE", "FGHI"], tmp_path, count=2, length=4, vocab_size=61) == [
        [1, 34, 35, 36],
        [1, 0, 37, 38],
    ]


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_block_formats_read_back(name):
    """Their calibration needs a GPU, but packing a tensor does not: ModelOpt packs, and these readers read."""
    from modelopt.torch.quantization.qtensor import MXFP8QTensor, NVFP4QTensor

    torch.manual_seed(0)
    weight = torch.randn(24, 96) * torch.logspace(-3, 1, 24)[:, None]
    if name == "mxfp8":
        packed, scale = MXFP8QTensor.quantize(weight)
        parts = {"weight_scale": scale}
    else:
        packed, scale, whole = NVFP4QTensor.quantize(weight, 16)
        parts = {"weight_scale": scale, "weight_scale_2": whole}
    parts["weight"] = packed._quantized_data
    value, allowed = SCHEMES[name].read(parts, weight)
    assert bool(((value - weight).abs() <= allowed).all())
    assert float((value - weight).norm() / weight.norm()) < {"mxfp8": 0.03, "nvfp4": 0.11}[name]
    for part, wrong in {
        "weight": parts["weight"].roll(1, -1),
        "weight_scale": parts["weight_scale"].roll(1, 0),
    }.items():
        value, allowed = SCHEMES[name].read(parts | {part: wrong}, weight)
        assert not bool(((value - weight).abs() <= allowed).all()), part
    assert (
        SCHEMES[name].why_not(torch.ones(4, 40)) == f"40 columns are not a multiple of {SCHEMES[name].block}"
    )
