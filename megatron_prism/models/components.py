"""The component of each tensor (attention, mlp, ...) and the rows of its sub-components, as data.

A merge can have different weights for each component. The weight analysis (paper section 7) reports by component and
sub-component. Both are found by the Megatron name of a rule, so one table covers every family.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.models.architecture import Architecture

COMPONENTS = ("attention", "mlp", "mamba", "embedding", "head", "norm")


@dataclass(frozen=True)
class Part:
    """Rows `row` .. `row + rows` of a Hugging Face tensor are sub-component `name`."""

    name: str
    row: int
    rows: int


@dataclass(frozen=True)
class TensorParts:
    """The component of a Hugging Face tensor, and its sub-components, which cover its rows in order."""

    component: str
    parts: tuple[Part, ...]


# The rows of Mamba's in_proj, in their order.
MAMBA_INPUT_PARTS = ("in_proj.z", "in_proj.x", "in_proj.B", "in_proj.C", "in_proj.dt")
# The end of a Megatron name -> component, and its sub-components in the order of the Hugging Face rows.
ENDINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "word_embeddings.weight": ("embedding", ("embedding",)),
    "output_layer.weight": ("head", ("head",)),
    "norm.weight": ("norm", ("norm",)),
    "linear_qkv.weight": ("attention", ("q", "k", "v")),
    "linear_proj.weight": ("attention", ("o",)),
    "linear_fc1.weight": ("mlp", ("gate", "up")),
    "linear_fc2.weight": ("mlp", ("down",)),
    "mixer.in_proj.weight": ("mamba", MAMBA_INPUT_PARTS),
    "mixer.out_proj.weight": ("mamba", ("out_proj",)),
    "mixer.conv1d.weight": ("mamba", ("conv1d",)),
    "mixer.conv1d.bias": ("mamba", ("conv1d",)),
    "mixer.A_log": ("mamba", ("A_log",)),
    "mixer.dt_bias": ("mamba", ("dt",)),
    "mixer.D": ("mamba", ("D",)),
}
# An MLP without a gate has only the second of the two.
UNGATED: dict[tuple[str, ...], tuple[str, ...]] = {("gate", "up"): ("up",)}


def tensor_parts(architecture: Architecture) -> dict[str, TensorParts]:
    """Every Hugging Face tensor of a model with its component and sub-components, in the order of the layers."""
    # Imported here, because the names of components are needed where torch is not loaded.
    from megatron_prism.models.families import parameter_map

    found: dict[str, TensorParts] = {}
    for rule in parameter_map(architecture):
        component, names = _ending(rule.megatron)
        if architecture.activation != "swiglu":
            names = UNGATED.get(names, names)
        shapes = rule.layout.hf_shapes(architecture)
        # One tensor for each sub-component, or one that holds them all (Granite 4's gate and up, Mamba's in_proj).
        share = len(names) // len(rule.hf)
        for index, (tensor, shape) in enumerate(zip(rule.hf, shapes, strict=True)):
            own = names[index * share : (index + 1) * share]
            rows = (
                _mamba_input_rows(architecture) if own == MAMBA_INPUT_PARTS else [shape[0] // share] * share
            )
            first = [sum(rows[:number]) for number in range(share)]
            found[tensor] = TensorParts(component, tuple(map(Part, own, first, rows)))
    return found


def _mamba_input_rows(architecture: Architecture) -> list[int]:
    """The rows of each of `MAMBA_INPUT_PARTS`."""
    inner = architecture.mamba_num_heads * architecture.mamba_head_dim
    group = architecture.mamba_num_groups * architecture.mamba_state_dim
    return [inner, inner, group, group, architecture.mamba_num_heads]


def components(architecture: Architecture) -> dict[str, str]:
    """Every Hugging Face tensor of a model with its component, one of `COMPONENTS`."""
    return {name: parts.component for name, parts in tensor_parts(architecture).items()}


def component_of(name: str) -> str:
    """The component of a parameter by its name in `named_parameters()` of either backend."""
    from megatron_prism.models.specs_te import unfused_name

    return _ending(unfused_name(name))[0]


def _ending(megatron: str) -> tuple[str, tuple[str, ...]]:
    return next(entry for ending, entry in ENDINGS.items() if megatron.endswith(ending))
