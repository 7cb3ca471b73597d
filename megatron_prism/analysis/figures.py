"""Figures for a paper and for the report: one style, saved as PDF, SVG and PNG, or inline on a page.

A `Drawing` needs no display and no global state. Ids are seeded and there is no date, so equal numbers give equal
bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, distinguishable with every common form of colour blindness (jfly.uni-koeln.de/color).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#333333", "#d8d8d8"
# Width of a paper's text block, in inches; a figure of one column has half of it.
FULL_WIDTH, HALF_WIDTH = 7.0, 3.4
PNG_DOTS_PER_INCH = 200

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    # Type 42 embeds TrueType fonts, so that text in a PDF can be selected and edited.
    "pdf.fonttype": 42,
    # A stage may be called "a$b$c", which is not a formula.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure that has not been drawn yet.

    Attributes:
        width: in inches.
        height: in inches.
        draw: draws on an empty `matplotlib.figure.Figure`.
        caption: one or two sentences that say what is shown.
    """

    width: float
    height: float
    draw: Callable[[Any], None]
    caption: str = ""


def save(drawing: Drawing, stem: Path) -> None:
    """Write STEM.pdf, STEM.svg and STEM.png."""
    with _drawn(drawing, stem.name) as figure:
        figure.savefig(stem.with_name(f"{stem.name}.pdf"), metadata={"CreationDate": None})
        # The places of all parts are the same in every format.
        figure.set_layout_engine("none")
        figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=PNG_DOTS_PER_INCH, facecolor="white")


def inline_svg(drawing: Drawing, seed: str) -> str:
    """The figure as an element of a page; `seed` keeps its ids apart from those of other figures."""
    with _drawn(drawing, seed) as figure:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue())


@contextmanager
def _drawn(drawing: Drawing, seed: str) -> Iterator[Any]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": seed}):
        figure = Figure(figsize=(drawing.width, drawing.height), layout="constrained")
        FigureCanvasSVG(figure)
        drawing.draw(figure)
        yield figure


def label_log_axis(axis: Any, numbers: tuple[int, ...] = (1, 2, 5)) -> None:
    """Write plain numbers at `numbers` times powers of ten on a logarithmic x- or y-axis (`axes.xaxis`, `axes.yaxis`).

    matplotlib's own labels are formulas, which `STYLE` turns off.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=numbers, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_number_axis(axis: Any) -> None:
    """Label an x-axis of layers or steps at a few whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def shared_legend(figure: Any, axes: Iterable[Any], most: int = 6) -> None:
    """One legend above all panels, at most `most` names in a row; a name that several panels have stands once.

    Some panels may lack what others have, such as a model that did not change.
    """
    named = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=max(1, min(most, len(named))))


def inline(svg: str) -> str:
    """An SVG document as an element of a page: without prologue, metadata and group ids, which would repeat."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # The page's column sets the width; the view box keeps the aspect ratio.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f'{head} class="figure" role="img">{rest}'.strip()
