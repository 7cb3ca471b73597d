"""Rules of docs/architecture.md: imports go down the floors; only platform names devices and paths of the project."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "megatron_prism"
FLOORS = (
    ("errors",),
    ("platform",),
    ("pipeline",),
    ("launching",),
    ("models",),
    ("data",),
    ("conversion", "planning"),
    ("training", "merging"),
    ("generation", "verification"),
    ("evaluation", "rl"),
    ("analysis",),
    ("report",),
    ("study",),
    ("recipes",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
DEVICE = re.compile(r"(cuda|cpu)(:\d+)?")
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
RECIPES = sorted((PACKAGE.parent / "recipes").glob("*.py"))


def room_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported_rooms(source: str) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of this package, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "megatron_prism":
                names = [f"megatron_prism.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if head == "megatron_prism" and room and not room.startswith("__"):
                yield node.lineno, room


def upward(module: Path, source: str) -> list[str]:
    """Imports of `module` that do not go down. The package's `__init__` may import platform."""
    room = room_of(module)
    if room == "__init__":
        return [
            f"{module}:{line} imports {other}"
            for line, other in imported_rooms(source)
            if other != "platform"
        ]
    return [
        f"{module}:{line} imports {other}"
        for line, other in imported_rooms(source)
        if other != room and LEVEL[other] >= LEVEL[room]
    ]


def devices(module: Path, source: str) -> list[str]:
    """Places where `module` names a device kind: a literal, or `torch.cuda`.

    `tensor.cpu()` brings a result to the host and chooses nothing: allowed. Layers may ask Megatron's
    own question, `torch.cuda.current_device()`, which platform answers.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and DEVICE.fullmatch(node.value):
            found.append(f"{module}:{node.lineno} {node.value!r}")
        elif (
            isinstance(node, ast.Attribute)
            and node.attr == "cuda"
            and module.parts[:2] != ("models", "layers")
        ):
            found.append(f"{module}:{node.lineno} .cuda")
    return found


def climbs(source: str) -> list[int]:
    """Lines that build a path above the folder of this file, where the files of other rooms are."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and "__file__" in ast.unparse(node):
            text = ast.unparse(node)
            if ".parents" in text or ".parent.parent" in text:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_looks_for_another_rooms_files(module: Path) -> None:
    assert module == Path("platform/source_tree.py") or not climbs((PACKAGE / module).read_text())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_imports_what_lies_below_it(recipe: Path) -> None:
    source = recipe.read_text()
    assert not upward(Path("recipes") / recipe.name, source)
    assert not climbs(source)
    assert not devices(Path("recipes") / recipe.name, source)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down(module: Path) -> None:
    assert module.parts == ("__init__.py",) or room_of(module) in LEVEL, "a room without a floor"
    assert not upward(module, (PACKAGE / module).read_text())


@pytest.mark.parametrize("module", [path for path in MODULES if room_of(path) != "platform"], ids=str)
def test_only_platform_names_devices(module: Path) -> None:
    assert not devices(module, (PACKAGE / module).read_text())


def test_the_checks_see_violations() -> None:
    module = Path("data/x.py")
    assert upward(module, "def f():\n    from megatron_prism.training.trainer import x\n")
    assert upward(module, "import megatron_prism.conversion.stage\n")
    assert upward(Path("__init__.py"), "from megatron_prism.pipeline import stage\n")
    assert upward(module, "from megatron_prism import cli\n")
    assert not upward(
        module, "from megatron_prism.pipeline.stage import Stage\nfrom megatron_prism.data.y import z\n"
    )
    assert upward(Path("recipes/x.py"), "from megatron_prism.cli.run import run\n")
    assert climbs("from pathlib import Path\nx = Path(__file__).resolve().parents[2] / 'recipes'\n")
    assert climbs("x = Path(__file__).parent.parent / 'recipes'\n")
    assert not climbs("x = Path(__file__).with_name('page.html')\n")
    assert len(RECIPES) >= 8
    assert devices(module, "x = 'cuda:0'\n")
    assert devices(module, "x.cuda()\n")
    assert devices(module, "torch.cuda.synchronize()\n")
    assert not devices(module, '"""cuda or cpu"""\nx = y.cpu()\n')
