"""Reads a quantized folder back and compares every tensor with the original checkpoint.

ModelOpt does not check what it writes. So each stored weight is read according to its format and compared element by
element, every scale and name must be expected, and everything that is not quantized must be unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_prism.conversion.quantization.schemes import Scheme
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.errors import CheckpointError

WEIGHT = ".weight"
INPUT_SCALE = "input_scale"
# Relative tolerance of fp32 scales for ranges that were measured in the model's dtype.
SCALE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class WeightCheck:
    """The result of the comparison.

    Attributes:
        relative_error: |read back - original| / |original| in the 2-norm, over all quantized weights.
        worst_layer, worst_relative_error: the layer with the largest relative error, and that error.
        unquantized: checkpoint names of the layers with a weight of two or more dimensions that is not quantized.
    """

    relative_error: float
    worst_layer: str
    worst_relative_error: float
    unquantized: list[str]


class QuantizedFolder:
    """The tensors of a folder, from all of its files."""

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                handle = self._open.enter_context(safe_open(str(path), framework="pt"))
            except SafetensorError as problem:
                raise CheckpointError(f"{path}: not a readable safetensors file ({problem})") from None
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                if name in self._files:
                    raise CheckpointError(f"{path}: tensor '{name}' is also in {self._files[name][0].name}")
                self._files[name] = path, handle

    def __enter__(self) -> QuantizedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def tensor(self, name: str) -> Tensor:
        found: Tensor = self._files[name][1].get_tensor(name)
        return found


def check_quantized(
    source: HFWeights,
    written: Path,
    scheme: Scheme,
    *,
    layers: Iterable[str],
    input_scales: Mapping[str, float],
) -> WeightCheck:
    """Compare a quantized folder with its source, with one tensor in memory.

    Args:
        layers: checkpoint names of the quantized layers, without '.weight'.
        input_scales: their measured scales, for a calibrated scheme.

    Raises:
        CheckpointError: naming the first tensor that is missing, unexpected or wrong.
    """
    quantized = set(layers)
    errors: dict[str, tuple[float, float]] = {}
    with QuantizedFolder(written) as folder:
        _check_names(source, folder.names, scheme, quantized, where=written)
        for name in source.stored:
            original = source.tensor(name)
            layer = name.removesuffix(WEIGHT)
            if layer in quantized:
                errors[layer] = _check_layer(folder, layer, scheme, original, where=written)
                if scheme.calibrated:
                    _check_input_scale(folder, layer, input_scales[layer], written)
            else:
                _check_same(folder.tensor(name), original, name, written)
    relative = {layer: math.sqrt(error / size) for layer, (error, size) in errors.items()}
    worst = max(relative, key=relative.__getitem__)
    total_error, total_size = (sum(column) for column in zip(*errors.values(), strict=True))
    return WeightCheck(
        relative_error=math.sqrt(total_error / total_size),
        worst_layer=worst,
        worst_relative_error=relative[worst],
        unquantized=sorted(
            name.removesuffix(WEIGHT)
            for name, shape in source.shapes.items()
            if name.endswith(WEIGHT) and len(shape) > 1 and name.removesuffix(WEIGHT) not in quantized
        ),
    )


def _check_names(
    source: HFWeights, found: set[str], scheme: Scheme, quantized: set[str], *, where: Path
) -> None:
    expected = set(source.stored) | {f"{layer}.{part}" for layer in quantized for part in scheme.companions}
    for name in sorted(expected - found):
        raise CheckpointError(f"{where}: tensor '{name}' was not written")
    for name in sorted(found - expected):
        raise CheckpointError(f"{where}: tensor '{name}' was written, but is not part of this checkpoint")


def _check_layer(
    folder: QuantizedFolder, layer: str, scheme: Scheme, original: Tensor, *, where: Path
) -> tuple[float, float]:
    """Squared error and squared size of a quantized weight."""
    parts = {part: folder.tensor(f"{layer}.{part}") for part in ("weight", *scheme.companions)}
    if parts["weight"].dtype.itemsize != 1:
        raise CheckpointError(
            f"{where}: tensor '{layer}{WEIGHT}' is {parts['weight'].dtype}, not {scheme.name}"
        )
    weight = original.float()
    try:
        value, allowed = scheme.read(parts, weight)
        off = (value - weight).abs()
        # This form of the comparison also catches NaN.
        wrong = ~(off <= allowed)
    except RuntimeError as problem:
        raise CheckpointError(
            f"{where}: layer '{layer}' has a weight or scale with a wrong shape ({problem})"
        ) from None
    if bool(wrong.any()):
        row, column = (int(index) for index in wrong.nonzero()[0])
        raise CheckpointError(
            f"{where}: layer '{layer}' reads back wrong: weight [{row}, {column}] is {float(weight[row, column]):.6g}, "
            f"but {float(value[row, column]):.6g} in {scheme.name} "
            f"({int(wrong.sum())} of {wrong.numel()} values differ by more than the format's rounding)"
        )
    return float(off.square().sum(dtype=torch.float64)), float(weight.square().sum(dtype=torch.float64))


def _check_input_scale(folder: QuantizedFolder, layer: str, measured: float, where: Path) -> None:
    name = f"{layer}.{INPUT_SCALE}"
    stored = folder.tensor(name).float()
    if stored.numel() != 1 or not math.isclose(float(stored), measured, rel_tol=SCALE_TOLERANCE):
        raise CheckpointError(
            f"{where}: tensor '{name}' is {stored.flatten()[:4].tolist()}, but {measured:.6g} was measured"
        )


def _check_same(stored: Tensor, original: Tensor, name: str, where: Path) -> None:
    """The same values in the same dtype."""
    if stored.dtype is not original.dtype or not torch.equal(stored, original):
        raise CheckpointError(
            f"{where}: tensor '{name}' ({stored.dtype}) is not quantized, but differs from the source's "
            f"({original.dtype})"
        )
