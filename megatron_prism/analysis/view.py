"""What a person sees of an analysis, made from its JSON document: tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_prism.analysis.figures import Drawing
from megatron_prism.platform.text_table import Table


@dataclass(frozen=True)
class View:
    """Tables in the order in which they are shown, and figures by the name of their file."""

    tables: list[Table]
    drawings: dict[str, Drawing] = field(default_factory=dict)


def view(document: Mapping[str, Any]) -> View:
    """The view of a document, found by its schema."""
    verb = str(document["schema"]).rpartition(".")[2].partition("/")[0]
    return _views()[verb](document)


def _views() -> dict[str, Callable[[Mapping[str, Any]], View]]:
    from megatron_prism.analysis.views import (
        cka,
        confidence,
        direction,
        landscape,
        spectrum,
        trajectory,
        weights,
    )

    return {
        "cka": cka.view,
        "confidence": confidence.view,
        "direction": direction.view,
        "landscape": landscape.view,
        "spectrum": spectrum.view,
        "trajectory": trajectory.view,
        "weights": weights.view,
    }
