"""The class of a stage as text, so that another process can find it: its module, and the file of a recipe's module.

A recipe in a `.py` file may define stages of its own; the module that holds them is loaded by path.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.stage import Stage

CLASS, FILE = "stage", "module_file"


def class_reference(cls: type[Stage]) -> dict[str, str]:
    """`cls` as `{"stage": "module:name"}`, with the file of a module that has no importable name."""
    reference = {CLASS: f"{cls.__module__}:{cls.__qualname__}"}
    if importlib.machinery.PathFinder.find_spec(cls.__module__.partition(".")[0]) is None:
        file = sys.modules[cls.__module__].__file__
        assert file is not None
        reference[FILE] = str(Path(file).resolve())
    return reference


def find_class(reference: Mapping[str, str]) -> type[Stage]:
    """The class of a reference.

    Raises:
        ArtifactError: if the file of its module does not exist any more.
    """
    name, _, qualified = reference[CLASS].partition(":")
    module = load_module(name, Path(reference[FILE])) if FILE in reference else importlib.import_module(name)
    found = module
    for part in qualified.split("."):
        found = getattr(found, part)
    assert isinstance(found, type)
    return found


def load_module(name: str, path: Path) -> ModuleType:
    """The module in the file at `path`, under this name; loaded once."""
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ArtifactError(
            f"{path}: the file that defines this stage does not exist any more; submit the recipe again"
        )
    return execute_file(name, path)


def execute_file(name: str, path: Path) -> ModuleType:
    """A new module from the file at `path`, under this name.

    Not through the import system, whose bytecode cache takes a file that was edited twice in a second, with the same
    length, for unchanged.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    # Dataclasses look up their module by name.
    sys.modules[name] = module
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    return module
