"""Whether a family's parameter table covers a model of these sizes: every tensor, with its shape."""

from __future__ import annotations

from megatron_prism.errors import CheckpointError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_on_meta
from megatron_prism.models.families import parameter_map
from megatron_prism.models.specs_te import unfused_name


def check_parameter_map(architecture: Architecture) -> int:
    """Compare the table with the model itself, built without memory; returns the number of tensors.

    Needs a running `platform.process_groups.session` of one process.

    Raises:
        CheckpointError: naming the first tensor that the table or the model lacks, or whose shapes differ.
    """
    built = {
        unfused_name(name): tuple(parameter.shape)
        for name, parameter in build_on_meta(architecture).named_parameters()
    }
    table = {rule.megatron: rule.megatron_shape(architecture) for rule in parameter_map(architecture)}
    family = architecture.family
    for name in sorted(built.keys() ^ table.keys()):
        where = "the table of" if name in table else "the model, but not the table, of"
        raise CheckpointError(f"parameter '{name}': only in {where} family '{family}'")
    for name, shape in table.items():
        if built[name] != shape:
            raise CheckpointError(
                f"parameter '{name}' of family '{family}': {shape} in the table, {built[name]} in the model"
            )
    return len(table)
