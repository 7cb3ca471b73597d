"""The commands of docs/results/evaluation.md run to the end and print every table that the page has."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["evaluation_intervals", "evaluation_selection"])
def test_a_simulation_prints_the_rows_of_the_page(name, capsys):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        module.main(2)
    printed = {_label(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    page = (ROOT / "docs" / "results" / "evaluation.md").read_text()
    # A section is a heading of the first level; its first command is the benchmark.
    (section,) = [part for part in re.split(r"^# ", page, flags=re.M) if f"benchmarks/{name}.py" in part]
    shown = {_label(line) for line in section.splitlines() if line.startswith("|")}
    assert printed == shown
    assert len(printed) > 10


def _label(row: str) -> str:
    """The cells of a row that are not numbers."""
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return " | ".join(cell for cell in cells if not re.fullmatch(r"[-+\d., ]+( to [\d.]+)?", cell))
