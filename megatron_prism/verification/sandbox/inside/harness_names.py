"""Names that a program may use without importing them, because the harness of LiveCodeBench imports them for it.

That harness puts the imports below before every program (lcb_runner/evaluation/testing_util.py), and those of HumanEval
do the same with a part of them, so programs use `List`, `math.gcd` or `Counter` as they come. Here a name is lent only
to a program that uses it, so the namespace of other programs is as `python file.py` makes it. A test does not see a
lent function: otherwise a program without an `add` would be tested on `operator.add`.
"""

from __future__ import annotations

import builtins
import importlib
import types
from collections.abc import Mapping
from typing import Any

# `from X import *`, in this order: later ones win, and the builtins win over those before them.
STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
# `import X`, after those.
MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)


def lendable() -> dict[str, str]:
    """Each name with the module that it comes from, or "" if the name is the module itself. Imports all of them."""
    found: dict[str, str] = {}
    for name in STARRED:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        found.update(dict.fromkeys(public, name))
    found.update(dict.fromkeys(MODULES, ""))
    return {name: module for name, module in found.items() if not hasattr(builtins, name)}


def mentioned_in(code: types.CodeType) -> set[str]:
    """The names of variables, attributes and modules in `code`."""
    mentioned: set[str] = set()
    waiting = [code]
    while waiting:
        part = waiting.pop()
        mentioned.update(part.co_names)
        waiting += [constant for constant in part.co_consts if isinstance(constant, types.CodeType)]
    return mentioned


def lent_to(mentioned: set[str], names: Mapping[str, str]) -> dict[str, Any]:
    """The names that a program mentions, with their values."""
    lent = {}
    for name in mentioned & names.keys():
        module = importlib.import_module(names[name] or name)
        lent[name] = getattr(module, name) if names[name] else module
    return lent
