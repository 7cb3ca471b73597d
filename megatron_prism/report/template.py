"""The templates of the report's pages: everything from models and configs is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_prism.report.text_width import BREAK_AFTER


def template(name: str) -> Any:
    """A Jinja template of this folder, in which an undefined name is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "code": code}
    return environment.get_template(name)


def cell(text: str, breakable: bool = False) -> Any:
    """A table's cell: lines after the first are smaller; a breakable name may be broken at its joints."""
    from markupsafe import Markup, escape

    first, *more = text.split("\n")
    pieces = BREAK_AFTER.split(first) if breakable else [first]
    shown = Markup("<wbr>").join(escape(piece) for piece in pieces)
    return shown + Markup("").join(Markup('<span class="more">{}</span>').format(line) for line in more)


def code(text: str) -> Any:
    """A sentence in which `...` is code."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(parts)
    )
