"""The fields of Megatron-Core's config dataclasses and their types, kept as data so that checking needs no torch.

    python -m megatron_prism.training.megatron_table

writes `megatron_fields.json` from the installed megatron-core. A test compares the two.
"""

from __future__ import annotations

import dataclasses
import json
import types
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

TABLE = Path(__file__).with_name("megatron_fields.json")
# The classes by the name of their group in the config.
CLASSES = {
    "transformer": "TransformerConfig",
    "ddp": "DistributedDataParallelConfig",
    "optimizer": "OptimizerConfig",
}
WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "null": "null",
}


@cache
def fields_of(group: str) -> dict[str, list[str]]:
    """The fields of a group's class, each with the forms that its value may have in YAML.

    A form is 'bool', 'int', 'float', 'str', 'null', 'list of FORM', or '=VALUE' for a text out of a set. The list is
    empty for a field that YAML cannot express, such as a function.
    """
    table: dict[str, dict[str, list[str]]] = json.loads(TABLE.read_text())["fields"]
    return table[group]


def fits(value: Any, form: str) -> bool:
    """Whether a value of YAML has this form."""
    if form.startswith("list of "):
        return isinstance(value, list) and all(fits(each, form.removeprefix("list of ")) for each in value)
    if form.startswith("="):
        return isinstance(value, str) and value == form[1:]
    if form == "null":
        return value is None
    if isinstance(value, bool):
        return form == "bool"
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    return form in kinds and isinstance(value, kinds[form])


def in_words(forms: list[str]) -> str:
    """What a value must be, for a reader: 'a whole number or null'."""
    found = [form[1:] if form.startswith("=") else _words(form) for form in forms]
    return " or ".join(found)


def _words(form: str) -> str:
    if form.startswith("list of "):
        return f"a list, each element {WORDS[form.removeprefix('list of ')]}"
    return WORDS[form]


def upstream_table() -> dict[str, Any]:
    """The table of the installed megatron-core."""
    from importlib.metadata import version

    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

    classes = (TransformerConfig, DistributedDataParallelConfig, OptimizerConfig)
    by_name: dict[str, Any] = {each.__name__: each for each in classes}
    fields = {
        group: {
            each.name: _forms(each.type)
            for each in dataclasses.fields(by_name[name])
            if each.init and not each.name.startswith("_")
        }
        for group, name in CLASSES.items()
    }
    return {"megatron-core": version("megatron-core"), "fields": fields}


def _forms(hint: Any) -> list[str]:
    forms = _every_form(hint)
    return [] if forms == ["null"] else forms


def _every_form(hint: Any) -> list[str]:
    simple = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null", list: ""}
    if hint in simple:
        return [simple[hint]] if simple[hint] else []
    origin = get_origin(hint)
    if origin is Literal:
        return [f"={choice}" for choice in get_args(hint)]
    if origin in (Union, types.UnionType):
        return [form for each in get_args(hint) for form in _every_form(each)]
    if origin in (list, tuple):
        return [f"list of {form}" for form in dict.fromkeys(_every_form(get_args(hint)[0]))]
    return []


def main() -> None:
    import megatron_prism

    assert megatron_prism, "it must be imported before torch"
    table = upstream_table()
    groups = []
    for group, fields in table.pop("fields").items():
        lines = [f"  {json.dumps(name)}: {json.dumps(forms)}" for name, forms in fields.items()]
        groups.append(f' "{group}": {{\n' + ",\n".join(lines) + "\n }")
    head = json.dumps(table)[:-1]
    TABLE.write_text(head + ', "fields": {\n' + ",\n".join(groups) + "\n}}\n")


if __name__ == "__main__":
    main()
