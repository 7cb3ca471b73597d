"""The keys under which Megatron's `torch_dist` format stores each parameter.

Dense models stack all layers of a parameter in one tensor; hybrids have one key for each layer. Norms have the names
of Transformer Engine's fused layers. Mamba's input projection and convolution are cut into the parts that tensor
parallelism splits one by one (mamba_mixer.py:851). The specs of the `torch` backend map to the same keys. Tests
compare this file with the keys of built models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import parameter_map
from megatron_prism.models.mappings import Rule, Shape

LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
FUSED_NORMS = (
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
    (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"),
)
MAMBA_NORM = re.compile(r"(layers\.\d+)\.norm\.")


@dataclass(frozen=True)
class TensorSlice:
    """Where rows of a Megatron parameter are stored: the tensor `key`, or layer `layer` of a tensor that stacks layers.

    Attributes:
        row, rows: the first of these rows in the parameter, and their number.
    """

    key: str
    layer: int | None
    row: int
    rows: int

    def shape(self, parameter: Shape) -> Shape:
        """The shape of this slice, for a parameter of the shape `parameter`; without the axis of layers."""
        return (self.rows, *parameter[1:])


def tensor_slices(rule: Rule, architecture: Architecture) -> list[TensorSlice]:
    """Where a parameter is stored. Several slices hold its rows in order."""
    name = rule.megatron
    found = LAYER.search(name)
    layer = int(found.group(1)) if found and not architecture.is_hybrid else None
    key = LAYER.sub("decoder.layers.", name) if layer is not None else name
    for local, fused in FUSED_NORMS:
        key = key.replace(local, fused)
    key = MAMBA_NORM.sub(r"\1.mixer.in_proj.layer_norm_", key)
    sections = _mamba_sections(name, architecture)
    if not sections:
        return [TensorSlice(key, layer, 0, rule.megatron_shape(architecture)[0])]
    row, pieces = 0, []
    for section, rows in sections:
        pieces.append(TensorSlice(f"{key}.{section}", layer, row, rows))
        row += rows
    return pieces


def all_tensor_slices(architecture: Architecture) -> list[tuple[Rule, TensorSlice]]:
    """Every slice of every parameter of a model."""
    return [
        (rule, tensor_slice)
        for rule in parameter_map(architecture)
        for tensor_slice in tensor_slices(rule, architecture)
    ]


def _mamba_sections(name: str, architecture: Architecture) -> list[tuple[str, int]]:
    a = architecture
    inner, group = a.mamba_num_heads * a.mamba_head_dim, a.mamba_num_groups * a.mamba_state_dim
    convolved = [("x", inner), ("B", group), ("C", group)]
    if name.endswith("mixer.in_proj.weight"):
        return [("z", inner), *convolved, ("dt", a.mamba_num_heads)]
    return convolved if name.endswith(("mixer.conv1d.weight", "mixer.conv1d.bias")) else []
