"""Find a recipe by name or file, and call it with checked parameters.

A recipe is a module with a function `recipe(**parameters) -> Graph`; the keyword parameters with defaults
(str, int, float or bool) can be set by the user. Names of recipes may contain '-' and '.', which a module name cannot.
"""

from __future__ import annotations

import ast
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_prism.errors import ConfigError, PrismError, suggest
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.placeholder import planning
from megatron_prism.pipeline.stage_class import execute_file
from megatron_prism.platform.source_tree import recipes_folder

PARAMETER_TYPES = (bool, int, float, str)


@dataclass(frozen=True)
class Recipe:
    """A recipe's function with its parameters and their defaults.

    Attributes:
        file: the file of the user that defines it; None for a recipe of this package.
        notes: what a parameter does, by name, as far as the recipe says so.
        paths: the parameters that name files or folders of the user.
    """

    name: str
    function: Callable[..., Graph]
    parameters: dict[str, Any]
    file: Path | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()

    def build(self, values: Mapping[str, Any], planned: bool = False) -> Graph:
        """The graph for these parameters; all others keep their defaults.

        Args:
            planned: placeholders stand for paths that a real run needs and that have no value; `Graph.absent` names
                them, and the graph cannot be run.

        Raises:
            ConfigError: if a parameter is unknown (the message suggests the nearest), or its type is not the default's.
        """
        checked = {}
        for key, value in values.items():
            if key not in self.parameters:
                raise ConfigError(
                    f"recipe '{self.name}': unknown parameter '{key}'{suggest(key, self.parameters)}"
                )
            checked[key] = self._checked(key, value)
        with self._named_errors():
            if planned:
                with planning() as absent:
                    graph = self.function(**checked)
            else:
                graph, absent = self.function(**checked), {}
        if not isinstance(graph, Graph):
            raise ConfigError(
                f"recipe '{self.name}': recipe() must return a Graph, not {type(graph).__name__}"
            )
        graph.absent, graph.parameters = dict(absent), {**self.parameters, **checked}
        return graph

    def graph(self, values: Mapping[str, Any], target: str | None = None, planned: bool = False) -> Graph:
        """The graph for `values` by dotted key: parameters of the recipe, and overrides of its stages.

        Args:
            target: a stage whose fields may be set without its name (see `Graph.override`).
            planned: see `build`.

        Raises:
            ConfigError: if a key is unknown or a value is invalid.
        """
        own = {key: value for key, value in values.items() if key.partition(".")[0] in self.parameters}
        graph = self.build(own, planned)
        overrides = {key: value for key, value in values.items() if key not in own}
        graph.override(overrides, target, also_known=self.parameters)
        return graph

    def _named_errors(self) -> AbstractContextManager[None]:
        """An exception of a user's own file becomes one line; in a recipe of this package it is a bug."""
        return nullcontext() if self.file is None else named_errors(self.file)

    def _checked(self, key: str, value: Any) -> Any:
        wanted = type(self.parameters[key])
        if wanted is float and type(value) is int:
            return float(value)
        # The types must be equal: Python accepts a bool as an int, but `seed=true` is a mistake.
        if type(value) is not wanted:
            example = self.parameters[key]
            if wanted is bool:
                example = str(example).lower()
            elif wanted is str:
                # YAML takes it for another type, such as a folder whose name is a number.
                example = f"\"'{value}'\""
            raise ConfigError(
                f"recipe '{self.name}': {key}={value!r} must be of type {wanted.__name__}, for example {key}={example}"
            )
        return value


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe called `name_or_path`, or in the `.py` file at that path.

    Raises:
        ConfigError: if no such recipe exists, or the module has no valid `recipe` function.
    """
    if name_or_path.endswith(".py"):
        path = Path(name_or_path)
        own = None if path.resolve().parent == recipes_folder().resolve() else path
        with nullcontext() if own is None else named_errors(path):
            return _from_module(_module_of_file(path), path.stem, own)
    known = list_recipes()
    by_module = {_module_name(name): name for name in known}
    module = _module_name(name_or_path)
    if module not in by_module:
        raise ConfigError(
            f"no recipe '{name_or_path}'{suggest(name_or_path, known)} (`prism recipes` lists all; a path of a .py "
            "file also works)"
        )
    return _from_module(recipe_module(module), by_module[module])


def recipe_module(name: str) -> ModuleType:
    """The module of the recipe in `recipes/` whose file has this name."""
    return _module_of_file(recipes_folder() / f"{name}.py")


def list_recipes() -> dict[str, str]:
    """Name -> first line of the docstring, for every recipe in `recipes/`. Files are parsed, not imported."""
    found = {}
    for path in sorted(recipes_folder().glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(_defines_recipe(item) for item in tree.body):
            found[_display_name(path.stem)] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def _defines_recipe(statement: ast.stmt) -> bool:
    """Whether a statement at the top of a module is `def recipe(...)` or `recipe = ...`."""
    if isinstance(statement, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "recipe" for target in statement.targets)
    return isinstance(statement, ast.FunctionDef) and statement.name == "recipe"


def _display_name(module: str) -> str:
    """'granite_3_3_8b' -> 'granite-3.3-8b': a lone digit after a digit is the second part of a version."""
    return re.sub(r"(?<=\d)-(?=\d(?:-|$))", ".", module.replace("_", "-"))


def _module_name(name: str) -> str:
    return name.replace("-", "_").replace(".", "_")


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe file")
    try:
        return execute_file(f"prism_recipe_{path.stem}", path)
    except SyntaxError as problem:
        line = "" if problem.lineno is None else f", line {problem.lineno}"
        raise ConfigError(f"{path}{line}: this is not valid Python ({problem.msg})") from None


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """An exception from the user's recipe file becomes a ConfigError with the file's line at fault."""
    try:
        yield
    except PrismError:
        raise
    except Exception as problem:
        frames = traceback.extract_tb(problem.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        reason = (str(problem) or "no message").splitlines()[0]
        raise ConfigError(f"{where}: {type(problem).__name__}: {reason}") from problem


def _from_module(module: ModuleType, name: str, file: Path | None = None) -> Recipe:
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise ConfigError(
            f"{module.__file__}: a recipe file must define a function recipe(...) that returns a Graph"
        )
    parameters = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if type(parameter.default) not in PARAMETER_TYPES:
            raise ConfigError(
                f"{module.__file__}: parameter '{key}' of recipe() needs a default of type str, int, float or bool"
            )
        parameters[key] = parameter.default
    notes = getattr(function, "notes", getattr(module, "PARAMETERS", {}))
    return Recipe(name, function, parameters, file, notes, getattr(function, "paths", ()))
