"""The stage graph as SVG: a row of boxes per depth, and arrows from each stage to the stages that use its artifact.

A simple layered layout (Sugiyama, Tagawa and Toda 1981): the depth is the longest path, edges over several layers bend
at invisible nodes, and the order within a layer follows the mean position of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from megatron_prism.report.records import StageRecord
from megatron_prism.report.tables import duration

BOX_WIDTH, BOX_HEIGHT = 158, 58
GAP_X, GAP_Y, MARGIN = 22, 46, 4
BEND_WIDTH = 12
SWEEPS = 8
LONGEST_NAME = 21
FILL = {"done": "#f3f8fc", "unfinished": "#fff6e5", "damaged": "#fdeee6", "not made": "#ffffff"}
EDGE = {"done": "#0072B2", "unfinished": "#E69F00", "damaged": "#D55E00", "not made": "#9a9a9a"}


@dataclass
class _Point:
    """A box or a bend of an edge, in a layer; x is its centre."""

    key: tuple[str, ...]
    layer: int
    width: float
    x: float = 0.0
    above: list[_Point] = field(default_factory=list)
    below: list[_Point] = field(default_factory=list)


def graph_figure(stages: Sequence[StageRecord]) -> str:
    """The stages with name, kind, state and wall time, as an SVG element; empty without stages.

    Arrows between stages that are also connected by a longer path are drawn lighter.
    """
    if not stages:
        return ""
    parents = {stage.name: list(dict.fromkeys(stage.inputs.values())) for stage in stages}
    layers, paths = _layout(parents)
    width = max(sum(p.width for p in layer) + GAP_X * (len(layer) - 1) for layer in layers) + 2 * MARGIN
    _place(layers, width)
    left = min(p.x - p.width / 2 for layer in layers for p in layer)
    right = max(p.x + p.width / 2 for layer in layers for p in layer)
    for point in (p for layer in layers for p in layer):
        point.x += MARGIN - left
    width = right - left + 2 * MARGIN
    height = len(layers) * BOX_HEIGHT + (len(layers) - 1) * GAP_Y + 2 * MARGIN
    boxes = {point.key[0]: point for layer in layers for point in layer if len(point.key) == 1}
    parts = [
        f'<svg class="figure graph" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{width:.0f}px" xmlns="http://www.w3.org/2000/svg">',
        "<title>Stage graph</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>',
    ]
    # Light arrows first, so that the others are drawn over them.
    for path in sorted(paths, key=lambda path: not _implied(path, parents)):
        parts.append(_arrow(path, _implied(path, parents)))
    parts += [_box(stage, boxes[stage.name]) for stage in stages]
    return "\n".join([*parts, "</svg>"])


def depths(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Length of the longest path from a stage without inputs; in `parents`, stages come after their inputs."""
    found: dict[str, int] = {}
    for name, made_from in parents.items():
        found[name] = 1 + max((found.get(parent, -1) for parent in made_from), default=-1)
    return found


def _layout(parents: Mapping[str, Sequence[str]]) -> tuple[list[list[_Point]], list[list[_Point]]]:
    """Layers of points, ordered so that few edges cross, and each edge as its points from top to bottom."""
    depth = depths(parents)
    layers: list[list[_Point]] = [[] for _ in range(max(depth.values()) + 1)]
    boxes = {name: _Point((name,), level, BOX_WIDTH) for name, level in depth.items()}
    for box in boxes.values():
        layers[box.layer].append(box)
    paths = []
    for name, made_from in parents.items():
        for parent in made_from:
            path = [boxes[parent]]
            for level in range(depth[parent] + 1, depth[name]):
                bend = _Point((parent, name, str(level)), level, BEND_WIDTH)
                layers[level].append(bend)
                path.append(bend)
            path.append(boxes[name])
            for upper, lower in pairwise(path):
                upper.below.append(lower)
                lower.above.append(upper)
            paths.append(path)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        place = {p.key: i / max(1, len(layer) - 1) for layer in layers for i, p in enumerate(layer)}
        for layer in layers if down else reversed(layers):
            layer.sort(key=lambda point: _mean(place, point.above if down else point.below, place[point.key]))
            place.update({p.key: (i + 0.5) / len(layer) for i, p in enumerate(layer)})
    return layers, paths


def _mean(place: Mapping[tuple[str, ...], float], points: Sequence[_Point], otherwise: float) -> float:
    return sum(place[point.key] for point in points) / len(points) if points else otherwise


def _place(layers: Sequence[Sequence[_Point]], width: float) -> None:
    """Set the x of every point: packed and centred, then moved towards its neighbours without changing the order."""
    for layer in layers:
        x = (width - sum(p.width for p in layer) - GAP_X * (len(layer) - 1)) / 2
        for point in layer:
            point.x = x + point.width / 2
            x += point.width + GAP_X
    for _ in range(2 * SWEEPS):
        for layer in layers:
            for index, point in enumerate(layer):
                near = [*point.above, *point.below]
                wish = sum(p.x for p in near) / len(near) if near else point.x
                low, high = float("-inf"), float("inf")
                if index > 0:
                    low = layer[index - 1].x + (layer[index - 1].width + point.width) / 2 + GAP_X
                if index + 1 < len(layer):
                    high = layer[index + 1].x - (layer[index + 1].width + point.width) / 2 - GAP_X
                point.x = min(max(wish, low), high)


def _implied(path: Sequence[_Point], parents: Mapping[str, Sequence[str]]) -> bool:
    """Whether the last stage of the path also depends on the first one through another of its inputs."""
    maker, user = path[0].key[0], path[-1].key[0]
    waiting = [parent for parent in parents[user] if parent != maker]
    seen = set(waiting)
    while waiting:
        for parent in parents[waiting.pop()]:
            if parent == maker:
                return True
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return False


def _top(layer: int) -> float:
    return MARGIN + layer * (BOX_HEIGHT + GAP_Y)


def _arrow(path: Sequence[_Point], implied: bool) -> str:
    x, y = path[0].x, _top(path[0].layer) + BOX_HEIGHT
    line = [f"M{x:.1f} {y:.1f}"]
    for point in path[1:]:
        top = _top(point.layer)
        middle = (y + top) / 2
        line.append(f"C{x:.1f} {middle:.1f} {point.x:.1f} {middle:.1f} {point.x:.1f} {top:.1f}")
        x, y = point.x, top
        if point is not path[-1]:
            y = top + BOX_HEIGHT
            line.append(f"L{x:.1f} {y:.1f}")
    stroke, thickness = ("#c4c4c4", 1.0) if implied else ("#555", 1.4)
    return (
        f'<path d="{" ".join(line)}" fill="none" stroke="{stroke}" stroke-width="{thickness}" '
        'marker-end="url(#arrow)"/>'
    )


def _box(stage: StageRecord, point: _Point) -> str:
    x, y = point.x - BOX_WIDTH / 2, _top(point.layer)
    name = stage.name if len(stage.name) <= LONGEST_NAME else stage.name[: LONGEST_NAME - 1] + "…"
    state = duration(stage.artifact.receipt.wall_seconds) if stage.artifact is not None else stage.status
    dash = "" if stage.status == "done" else ' stroke-dasharray="5 3"'
    return (
        f"<g><title>{escape(stage.name)} ({escape(stage.kind)}): {stage.status}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" '
        f'fill="{FILL[stage.status]}" stroke="{EDGE[stage.status]}" stroke-width="1.4"{dash}/>'
        f'<text x="{point.x:.1f}" y="{y + 24:.1f}" text-anchor="middle" class="name">{escape(name)}</text>'
        f'<text x="{point.x:.1f}" y="{y + 43:.1f}" text-anchor="middle" class="detail">'
        f"{escape(stage.kind)} · {escape(state)}</text></g>"
    )
