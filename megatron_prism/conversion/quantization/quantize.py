"""Quantizes an exported Hugging Face folder to 8 bits (or 4) after training, with NVIDIA ModelOpt.

ModelOpt measures the ranges of activations on calibration text and writes a folder in its own layout: weights with
their scales, and `quantization_config` in config.json. vLLM and TensorRT-LLM read this layout; their documentation
says which schemes and models they support. transformers does not read it. So the change of the logits is measured
before the export, with ModelOpt's simulated rounding, and the written folder is read back and compared (`check`).

Three things are done here instead of by ModelOpt 0.47. The list of unquantized layers is made from the written tensors,
because for Nemotron-H ModelOpt lists names that no layer has, and a reader would treat those layers as quantized.
Config, generation config and tokenizer are copied from the source. Tensors whose dtype differs from the config's, such
as Mamba's fp32 parameters, keep their dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megatron_prism.conversion.config_json import write_config
from megatron_prism.conversion.hf_folder.extra_tensors import HEAD
from megatron_prism.conversion.logits import load_in_transformers
from megatron_prism.conversion.quantization.calibration import windows
from megatron_prism.conversion.quantization.check import WEIGHT, WeightCheck, check_quantized
from megatron_prism.conversion.quantization.modelopt_calls import (
    DISTRIBUTION,
    check_installed,
    export,
    input_scales,
    logit_change,
    quantize,
    quiet,
)
from megatron_prism.conversion.quantization.restored_dtypes import restore_dtypes
from megatron_prism.conversion.quantization.schemes import Scheme, scheme_named
from megatron_prism.conversion.side_files.carry import carry_files
from megatron_prism.conversion.side_files.token_ids import disagreements
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.model_folder import CONFIG, GENERATION_CONFIG, read_json
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.output_folder import whole_folder
from megatron_prism.platform.hardware import device, package_version

# Windows for comparing logits. They are not used for calibration.
HELD_OUT = 8
QUANTIZATION, MODELOPT_CONFIG = "quantization_config", "hf_quant_config.json"


def quantize_checkpoint(
    hf_dir: Path,
    out: Path,
    scheme: str,
    texts: Iterable[str] | None,
    *,
    samples: int = 128,
    length: int = 512,
) -> dict[str, Any]:
    """Quantize the linear layers of a Hugging Face folder. Embeddings, head and convolutions stay unquantized.

    The whole model is loaded, in its dtype, on this process's device.

    Args:
        hf_dir: config, safetensors and tokenizer of a supported family.
        out: new folder; it appears when everything is written and checked.
        scheme: one of `schemes.SCHEMES`.
        texts: calibration documents, like those the model will see. The first `samples` windows of `length` tokens set
            the ranges; the logits are compared on the next `HELD_OUT` windows.

    Returns:
        Metrics: `scheme`, `quantized_layers` (how many), `kept_layers` (linear layers the format cannot hold, with the
        reason), `bytes_before` and `bytes_after` of the weight files that were read and written, `weight_error` and
        `worst_weight_error` (of `worst_layer`) relative in the 2-norm, `calibration_tokens`, `remarks` (for the user),
        and on `held_out_tokens`: `logit_max_change`, `logit_mean_change` (absolute), `logit_largest` (of the original),
        `top1_agreement` 0..1, `loss_before` and `loss_after` in nats per token.

    Raises:
        ConfigError: if the scheme is unknown or needs a GPU, ModelOpt is not installed, the model is already
            quantized or of an unknown family, or the text is missing or too short.
        CheckpointError: if the source is damaged, ModelOpt fails, or the result reads back wrong.
        DataError: if `out` is not empty, or the disk is full.
    """
    wanted = scheme_named(scheme)
    check_installed()
    hf_dir = Path(hf_dir)
    _check_not_quantized(hf_dir)
    source = HFWeights(hf_dir)
    limit = source.architecture.max_position_embeddings
    if samples < 1 or not 2 <= length <= limit:
        raise ConfigError(
            f"samples={samples}, length={length}: use 1 or more samples, and a length from 2 to {limit} "
            f"(max_position_embeddings of {hf_dir})"
        )
    if texts is None:
        raise ConfigError(
            f"scheme='{scheme}': calibration text is needed; name a file with text like the model will see "
            "(--calibration FILE)"
        )
    with whole_folder(out) as folder, quiet():
        ids = windows(
            texts,
            hf_dir,
            count=samples + HELD_OUT,
            length=length,
            vocab_size=source.architecture.vocab_size,
        )
        # The dtype of the tensors may differ from the one that the config names.
        model = load_in_transformers(hf_dir, source.main_dtype).to(device()).eval()
        layers, kept = _choose(model, source, wanted)
        quantize(model, wanted, layers=layers, kept=kept, samples=ids[:samples], hf_dir=hf_dir)
        change = logit_change(model, ids[samples:])
        export(model, folder, wanted, hf_dir)
        names = {module: layers[module] for module in layers if module not in kept}
        scales = input_scales(model, wanted, names) if wanted.calibrated else {}
        remarks = source.remarks + restore_dtypes(source, folder, set(names.values()))
        check = check_quantized(source, folder, wanted, layers=names.values(), input_scales=scales)
        remarks += _write_side_files(source, folder, check)
        return {
            "scheme": scheme,
            "modelopt": package_version(DISTRIBUTION),
            "quantized_layers": len(names),
            "kept_layers": {layers[module]: reason for module, reason in kept.items()},
            "bytes_before": _bytes({stored.file for stored in source.stored.values()}),
            "bytes_after": _bytes(folder.glob("*.safetensors")),
            "weight_error": check.relative_error,
            "worst_weight_error": check.worst_relative_error,
            "worst_layer": check.worst_layer,
            "calibration_tokens": samples * length,
            "held_out_tokens": HELD_OUT * length,
            "remarks": remarks,
            **change,
        }


def _check_not_quantized(hf_dir: Path) -> None:
    if not hf_dir.is_dir():
        raise CheckpointError(f"{hf_dir}: no such folder")
    found = read_json(hf_dir / CONFIG).get(QUANTIZATION)
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        raise ConfigError(
            f"{hf_dir / CONFIG}: has a {QUANTIZATION} (quant_method='{method}'), so the model is already quantized; "
            f"quantize the original model instead"
        )


def _choose(model: nn.Module, source: HFWeights, scheme: Scheme) -> tuple[dict[str, str], dict[str, str]]:
    """The linear layers except the head, by module name: their checkpoint names, and why some cannot be quantized."""
    # For some families transformers renames the outermost module when it loads them (Nemotron-H: backbone -> model).
    stored = {_without_root(name): name for name in source.stored}
    head = HEAD.removesuffix(WEIGHT)
    layers: dict[str, str] = {}
    kept: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == head:
            continue
        found = stored.get(_without_root(name + WEIGHT))
        if found is None:
            raise ConfigError(
                f"{source.path}: transformers' layer '{name}' has no tensor with that name in the checkpoint; "
                f"a model with this layout cannot be quantized"
            )
        layers[name] = found.removesuffix(WEIGHT)
        weight = module.weight.detach()
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                f"{source.path}: tensor '{found}' holds a NaN or an infinite number, so the model cannot be quantized"
            )
        reason = scheme.why_not(weight)
        if reason is not None:
            kept[name] = reason
    if len(kept) == len(layers):
        raise ConfigError(f"{source.path}: no linear layer can be stored as {scheme.name} ({_first(kept)})")
    return layers, kept


def _without_root(name: str) -> str:
    return name.partition(".")[2]


def _first(reasons: dict[str, str]) -> str:
    return next((f"'{name}': {reason}" for name, reason in reasons.items()), "the model has none")


def _write_side_files(source: HFWeights, folder: Path, check: WeightCheck) -> list[str]:
    """Copy the source's files; its config gets ModelOpt's `quantization_config` with the unquantized layers."""
    kept = sorted({*check.unquantized, HEAD.removesuffix(WEIGHT)})
    quantization = read_json(folder / CONFIG)[QUANTIZATION] | {"ignore": kept}
    details = read_json(folder / MODELOPT_CONFIG)
    details["quantization"]["exclude_modules"] = kept
    (folder / GENERATION_CONFIG).unlink(missing_ok=True)
    remarks = carry_files(source.path, folder)
    remarks += disagreements(source.path, source.architecture.vocab_size)
    write_config(folder, source.architecture, source.main_dtype, {})
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {QUANTIZATION: quantization})
    write_json(folder / MODELOPT_CONFIG, details)
    return remarks


def _bytes(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)
