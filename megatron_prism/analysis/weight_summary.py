"""The changes of tensors, summed by component, sub-component and layer: `analyze weights` as a document and rows.

"Total" has two meanings in use, and both stand under their own name: the mean of the tensors' deltas, in which a norm
of 4,096 numbers counts as much as an embedding of 200 million, and the ratio of the norms of all numbers together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_prism.analysis.change import ABSOLUTE, MAIN_THRESHOLD, THRESHOLDS, Change, total
from megatron_prism.analysis.labels import labels
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.weights import ModelChange, TensorChange, compare_weights
from megatron_prism.models.components import COMPONENTS

VERB = "weights"


def analyze_weights(
    base: Path,
    others: Sequence[Path],
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Analysis:
    """How each of `others` differs from `base`, in one pass over the files; see `compare_weights` for errors.

    Args:
        names: of the base and the others in tables; by default the ends of their paths.
        progress: called with the number of bytes of the base that were read since the last call.
    """
    found = compare_weights(base, others, progress)
    base_name, *other_names = names or labels([base, *others])
    models = [
        {"model": name, "folder": str(each.folder), "stored_as": each.stored_as, **summarize(each.tensors)}
        for name, each in zip(other_names, found.models, strict=True)
    ]
    return Analysis(
        verb=VERB,
        summary={"base": base_name, "models": {each["model"]: _headline(each) for each in models}},
        values={
            "base": {"model": base_name, "folder": str(base), "stored_as": found.base_stored_as},
            "family": found.architecture.family,
            "thresholds": list(THRESHOLDS),
            "main_threshold": MAIN_THRESHOLD,
            "absolute_threshold": ABSOLUTE,
            "models": models,
        },
        rows={"tensors": list(_rows(other_names, found.models))},
        remarks=found.remarks,
    )


def summarize(tensors: Sequence[TensorChange]) -> dict[str, Any]:
    """One model's changes: all of it, and by component, sub-component and layer."""
    present = {each.component for each in tensors}
    components = [component for component in COMPONENTS if component in present]
    parts = [
        (each.component, name, change)
        for component in components
        for each in tensors
        if each.component == component
        for name, change in each.parts.items()
    ]
    layers = sorted({each.layer for each in tensors if each.layer is not None})
    return {
        "all": measure(each.change for each in tensors),
        "components": {
            component: measure(each.change for each in tensors if each.component == component)
            for component in components
        },
        "sub_components": {
            f"{component}.{name}": measure(change for *key, change in parts if key == [component, name])
            for component, name in dict.fromkeys((component, name) for component, name, _ in parts)
        },
        "layers": [
            {
                "layer": layer,
                **{
                    component: measure(mine)
                    for component in components
                    if (mine := [t.change for t in tensors if (t.layer, t.component) == (layer, component)])
                },
            }
            for layer in layers
        ],
    }


def measure(changes: Iterable[Change]) -> dict[str, Any]:
    """The numbers of a set of tensors; docs/analysis.md has the formula of each. None where one is not defined."""
    each = list(changes)
    together = total(each)
    deltas = [change.delta for change in each if change.delta is not None]
    return {
        "tensors": len(each),
        "elements": together.elements,
        "mean_delta": sum(deltas) / len(deltas) if deltas else None,
        "norm_delta": together.delta,
        "without_delta": len(each) - len(deltas),
        "floor": together.floor,
        "unchanged": [together.sparsity[threshold] for threshold in THRESHOLDS],
        "equal": together.equal / together.elements,
        "unchanged_absolute": together.absolute / together.elements,
        "zeros_kept": together.zeros_kept,
        "zeros_changed": together.zeros_changed,
        "vanished": together.vanished / together.rounded_changed if together.rounded_changed else None,
        "vanished_norm": together.vanished_norm,
    }


def sparsity(measured: dict[str, Any]) -> float:
    """The paper's update sparsity: the share of elements that changed by less than 1 %."""
    found: float = measured["unchanged"][THRESHOLDS.index(MAIN_THRESHOLD)]
    return found


def _headline(model: dict[str, Any]) -> dict[str, Any]:
    whole = model["all"]
    attention = model["components"].get("attention")
    return {
        "mean_delta": whole["mean_delta"],
        "norm_delta": whole["norm_delta"],
        "sparsity": sparsity(whole),
        "attention_sparsity": sparsity(attention) if attention else None,
        "floor": whole["floor"],
        "vanished": whole["vanished"],
    }


def _rows(names: Sequence[str], models: Sequence[ModelChange]) -> Iterator[dict[str, Any]]:
    """One record for every sub-component of every tensor."""
    for name, model in zip(names, models, strict=True):
        for tensor in model.tensors:
            for part, change in tensor.parts.items():
                measured = measure([change])
                unchanged = measured.pop("unchanged")
                # A record is about one piece, so its mean is its own delta.
                for key in ("tensors", "mean_delta", "without_delta"):
                    measured.pop(key)
                yield {
                    "model": name,
                    "tensor": tensor.tensor,
                    "layer": tensor.layer,
                    "component": tensor.component,
                    "sub_component": part,
                    "shape": list(tensor.shape),
                    "stored_as": tensor.dtype,
                    "delta": measured.pop("norm_delta"),
                    **measured,
                    **{
                        f"unchanged_{100 * threshold:g}_percent": share
                        for threshold, share in zip(THRESHOLDS, unchanged, strict=True)
                    },
                }
