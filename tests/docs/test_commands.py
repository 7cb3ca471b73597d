"""Every `prism run` in the docs builds its graph: recipe, stage, parameters, overrides and options exist."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_prism.cli.run import build_graph, split_target
from megatron_prism.data.mixture import Mixture
from megatron_prism.study.registry import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A line of a code block without its comment; lines that end with a backslash continue.
COMMAND = re.compile(r"^    prism run ((?:.*\\\n)*.*?)(?: {2,}#.*)?$", re.MULTILINE)
OVERRIDE = re.compile(r"^    '([\w.]+=\{[^']*\})'", re.MULTILINE)
WITH_VALUE = ("--from", "--jobs", "--run-dir", "--json", "--executor", "--ranks", "--to-yaml", "--from-yaml")


def commands() -> list[str]:
    return [" ".join(found.split()) for page in PAGES for found in COMMAND.findall(page.read_text())]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A value for each placeholder."""
    for source in (
        Mixture.load("mcs").weights | Mixture.load("mc").weights | Mixture.load("long-context").weights
    ):
        (tmp_path / f"{source}.jsonl").write_text("{}")
    # The mixture that docs/recipes.md shows, with its source.
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    (tmp_path / "notes.yaml").write_text(example)
    (tmp_path / "notes.jsonl").write_text("{}")
    names = dict.fromkeys(
        ("DIR", "HF_DIR", "DATA", "/shared/models/granite-3.3-8b", "/shared/texts"), str(tmp_path)
    )
    return names | {"notes.yaml": str(tmp_path / "notes.yaml")}


def build(command: str, files: dict[str, str]):
    words = shlex.split(command.replace("\\", ""))
    overrides = ["tiny=true"] if "--tiny" in words else []
    name, target = split_target(words[0])
    for before, word in pairwise(words):
        if not word.startswith("--") and before not in WITH_VALUE:
            key, _, value = word.partition("=")
            overrides.append(f"{key}={files.get(value, value)}")
    if name == "./mine.py":
        # docs/recipes.md copies a recipe first.
        name = shutil.copy(ROOT / "recipes/granite_3_3_8b.py", Path(files["DIR"]) / "mine.py").as_posix()
    recipe = load_recipe(str(ROOT / name) if name.endswith(".py") else name)
    # Paths that a command leaves out have placeholders.
    return build_graph(recipe, target, overrides, planned=True)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_builds_its_graph(command, files):
    graph = build(command, files)
    assert graph.nodes
    if found := re.search(r"--from (\w+)", command):
        graph.node(found[1])


def test_the_overrides_of_the_long_context_page_reach_every_row(files):
    texts = OVERRIDE.findall((ROOT / "docs/long-context.md").read_text())
    assert len(texts) == 2
    for text in texts:
        override = shlex.quote(" ".join(text.split()))
        graph = build(f"mistral-7b-v0.1 long_context=true {override}", files)
        rows = [
            node.stage for name, node in graph.nodes.items() if name.endswith(("extend", "extend_attention"))
        ]
        made = {str(stage.trained_architecture) for stage in rows if hasattr(stage, "trained_architecture")}
        assert len(made) == 1


def test_the_pages_do_name_commands():
    assert len(commands()) > 10
