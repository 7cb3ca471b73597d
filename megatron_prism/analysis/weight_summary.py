"""The changes of tensors, summed by component, sub-component and layer: `analyze weights` as a document and rows.

"Total" has two meanings in use, and both stand under their own name: the mean of the tensors' deltas, in which a norm
of 4,096 numbers counts as much as an embedding of 200 million, and the ratio of the norms of all numbers together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_prism.analysis.change import ABSOLUTE, MAIN_THRESHOLD, THRESHOLDS, Change, total
from megatron_prism.analysis.inputs import dtype_name
from megatron_prism.analysis.labels import labels
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.streaming import Piece, by_group
from megatron_prism.analysis.weights import Changes, compare_weights, stored_as
from megatron_prism.conversion.weights import Weights

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
    opened = found.models[1:]
    models = [
        {
            "model": name,
            "folder": str(model.path),
            "stored_as": stored_as(model),
            **summarize([(piece, changes[index]) for piece, changes in found.pieces]),
        }
        for index, (name, model) in enumerate(zip(other_names, opened, strict=True))
    ]
    return Analysis(
        verb=VERB,
        summary={"base": base_name, "models": {each["model"]: _headline(each) for each in models}},
        values={
            "base": {"model": base_name, "folder": str(base), "stored_as": stored_as(found.models[0])},
            "family": found.models[0].architecture.family,
            "thresholds": list(THRESHOLDS),
            "main_threshold": MAIN_THRESHOLD,
            "absolute_threshold": ABSOLUTE,
            "models": models,
        },
        rows={"tensors": list(_rows(other_names, opened, found.pieces))},
        remarks=found.remarks,
    )


def summarize(pieces: Sequence[tuple[Piece, Change]]) -> dict[str, Any]:
    """One model's changes: all of it, and by component, sub-component and layer."""

    def of_tensors(indices: list[int]) -> dict[str, Any]:
        """Pieces of one tensor in this group, such as gate and up where they are stored as one, count together."""
        tensors: dict[str, list[Change]] = {}
        for index in indices:
            piece, change = pieces[index]
            tensors.setdefault(piece.tensor, []).append(change)
        return measure(map(total, tensors.values()))

    return by_group([piece for piece, _ in pieces], of_tensors)


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


def _rows(
    names: Sequence[str], models: Sequence[Weights], pieces: Sequence[tuple[Piece, Changes]]
) -> Iterator[dict[str, Any]]:
    """One record for every sub-component of every tensor of every model."""
    for index, (name, model) in enumerate(zip(names, models, strict=True)):
        for piece, changes in pieces:
            measured = measure([changes[index]])
            unchanged = measured.pop("unchanged")
            # A record is about one piece, so its mean is its own delta.
            for key in ("tensors", "mean_delta", "without_delta"):
                measured.pop(key)
            yield {
                "model": name,
                "tensor": piece.tensor,
                "layer": piece.layer,
                "component": piece.component,
                "sub_component": piece.part,
                "shape": list(piece.shape),
                "stored_as": dtype_name(model.dtypes[piece.tensor]),
                "delta": measured.pop("norm_delta"),
                **measured,
                **{
                    f"unchanged_{100 * threshold:g}_percent": share
                    for threshold, share in zip(THRESHOLDS, unchanged, strict=True)
                },
            }
