"""Checks that a folder holds exactly the tensors that its config needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_prism.errors import CheckpointError, suggest


def check_tensors(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], where: str, family: str
) -> None:
    """Raise a CheckpointError naming the first tensor that is missing, unknown or has a wrong shape."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{where}: no tensor '{name}', which {family} needs{suggest(name, _unknown(found, expected))}"
            )
        if tuple(found[name]) != tuple(shape):
            empty = (
                "; the tensor is empty because the model was saved while its weights were spread over ranks (as with "
                "DeepSpeed's ZeRO-3); gather the weights and save it again"
            )
            raise CheckpointError(
                f"{where}: tensor '{name}' has shape {list(found[name])}, but config.json needs {list(shape)}"
                f"{empty if 0 in found[name] else ''}"
            )
    for name in sorted(_unknown(found, expected)):
        raise CheckpointError(
            f"{where}: tensor '{name}' is not part of family '{family}'; remove it if the model does not "
            "use it, or correct the config"
        )


def _unknown(found: Iterable[str], expected: Mapping[str, Any]) -> set[str]:
    return set(found) - expected.keys()
