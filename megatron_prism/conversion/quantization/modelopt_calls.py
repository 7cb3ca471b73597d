"""The calls to NVIDIA ModelOpt: insert and calibrate quantizers, compare logits with and without them, export.

ModelOpt chooses the layers that it quantizes by their names and classes. Afterwards exactly the layers chosen here
must be quantized; otherwise the model is refused.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_prism.conversion.hf_folder.writer import MAX_SHARD_BYTES
from megatron_prism.conversion.quantization.schemes import Scheme
from megatron_prism.errors import CheckpointError, ConfigError

DISTRIBUTION = "nvidia-modelopt"
# ModelOpt 0.47 leaves out the convolution of Nemotron-H's Mamba layers, but not Granite's: it would simulate Granite's
# in 8 bits and write it unquantized.
KEPT = ("*conv1d*",)
Windows = Sequence[Sequence[int]]


def check_installed() -> None:
    """Raise a ConfigError if ModelOpt is not installed."""
    if importlib.util.find_spec("modelopt") is None:
        raise ConfigError(
            f"quantization needs NVIDIA ModelOpt ({DISTRIBUTION}), which is not installed: "
            f"pip install 'megatron-prism[modelopt]'"
        )


def quantize(
    model: Any,
    scheme: Scheme,
    *,
    layers: Iterable[str],
    kept: Iterable[str],
    samples: Windows,
    hf_dir: Path,
) -> None:
    """Insert ModelOpt's quantizers and calibrate them. They are enabled in exactly the chosen layers.

    Args:
        layers: module names of the linear layers.
        kept: those of `layers` that are not quantized.
        samples: token ids `[windows][length]`.

    Raises:
        ConfigError: if ModelOpt chose other layers, or a layer never ran.
        CheckpointError: if ModelOpt fails.
    """
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(getattr(mtq, scheme.preset))
    off = (*KEPT, *(f"{name}.*" for name in kept))
    config["quant_cfg"] += [{"quantizer_name": pattern, "enable": False} for pattern in off]
    with _one_line_error(hf_dir, scheme):
        mtq.quantize(model, config, lambda quantized: _run(quantized, samples))
    active = {name.rpartition(".")[0] for name, _ in _quantizers(model)}
    expected = set(layers) - set(kept)
    for name in sorted(active ^ expected):
        kind = type(model.get_submodule(name)).__name__
        raise ConfigError(
            f"{hf_dir}: ModelOpt {'quantizes' if name in active else 'does not quantize'} layer '{name}' ({kind}); "
            f"a model with this layer cannot be quantized to {scheme.name}"
        )
    for name, quantizer in _quantizers(model):
        if scheme.calibrated and name.endswith("input_quantizer") and not _has_range(quantizer):
            raise ConfigError(
                f"{hf_dir}: the calibration text caused no activations in layer '{name.rpartition('.')[0]}'; "
                f"use more or other text"
            )


def _quantizers(model: nn.Module) -> list[tuple[str, Any]]:
    """The enabled quantizers."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, TensorQuantizer)]
    return [(name, quantizer) for name, quantizer in found if quantizer.is_enabled]


def _has_range(quantizer: Any) -> bool:
    return quantizer.amax is not None and bool(
        (quantizer.amax > 0).all() and torch.isfinite(quantizer.amax).all()
    )


def _run(model: Any, samples: Windows) -> None:
    with torch.no_grad():
        for window in samples:
            _logits(model, window)


def _logits(model: Any, window: Sequence[int]) -> Tensor:
    """`[length, vocabulary]`, fp32."""
    ids = torch.tensor([window], device=model.device)
    logits: Tensor = model(ids, use_cache=False).logits[0].float()
    return logits


@torch.no_grad()
def logit_change(model: Any, held_out: Windows) -> dict[str, float]:
    """Compare the model's logits with and without simulated rounding, window by window; memory: one window's logits.

    Returns:
        `logit_max_change` and `logit_mean_change` (absolute), `logit_largest` of the original, `top1_agreement` 0..1,
        `loss_before` and `loss_after` in nats per token.
    """
    quantizers = [quantizer for _, quantizer in _quantizers(model)]
    largest = change = total = agree = loss_before = loss_after = 0.0
    count = vocabulary = predicted = 0
    for window in held_out:
        after = _logits(model, window)
        for quantizer in quantizers:
            quantizer.disable()
        before = _logits(model, window)
        for quantizer in quantizers:
            quantizer.enable()
        off = (after - before).abs()
        largest, change = max(largest, float(before.abs().max())), max(change, float(off.max()))
        total += float(off.sum(dtype=torch.float64))
        agree += float((after.argmax(-1) == before.argmax(-1)).sum())
        targets = torch.tensor(window[1:], device=before.device)
        loss_before += float(nn.functional.cross_entropy(before[:-1], targets, reduction="sum"))
        loss_after += float(nn.functional.cross_entropy(after[:-1], targets, reduction="sum"))
        count, vocabulary, predicted = count + len(window), before.shape[-1], predicted + len(window) - 1
    return {
        "logit_max_change": change,
        "logit_mean_change": total / (count * vocabulary),
        "logit_largest": largest,
        "top1_agreement": agree / count,
        "loss_before": loss_before / predicted,
        "loss_after": loss_after / predicted,
    }


def export(model: Any, folder: Path, scheme: Scheme, hf_dir: Path) -> None:
    """Write the folder. Afterwards the model cannot run any more."""
    from modelopt.torch.export import export_hf_checkpoint

    with _one_line_error(hf_dir, scheme):
        export_hf_checkpoint(model, export_dir=folder, max_shard_size=MAX_SHARD_BYTES)


def input_scales(model: nn.Module, scheme: Scheme, names: Mapping[str, str]) -> dict[str, float]:
    """The scale of each layer's input, from the measured ranges.

    Args:
        model: after the export, because the export makes layers with the same input share a range.
        names: module name -> name in the result.
    """
    found = {}
    for module, name in names.items():
        quantizer: Any = model.get_submodule(f"{module}.input_quantizer")
        found[name] = float(quantizer.amax) / scheme.input_max
    return found


@contextmanager
def _one_line_error(hf_dir: Path, scheme: Scheme) -> Iterator[None]:
    """Turn the errors that ModelOpt raises for an unsupported model into one line. A full disk is not one of them."""
    try:
        yield
    except (
        NotImplementedError,
        AssertionError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as problem:
        raise CheckpointError(
            f"{hf_dir}: ModelOpt cannot quantize this model to {scheme.name} ({type(problem).__name__}: {problem})"
        ) from problem


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what ModelOpt and transformers print, partly to stdout, which is for results."""
    from transformers.utils import logging as upstream

    modelopt = logging.getLogger("modelopt")
    verbosity, level, bars = upstream.get_verbosity(), modelopt.level, upstream.is_progress_bar_enabled()
    try:
        upstream.set_verbosity_error()
        upstream.disable_progress_bar()
        modelopt.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        upstream.set_verbosity(verbosity)
        modelopt.setLevel(level)
        if bars:
            upstream.enable_progress_bar()
