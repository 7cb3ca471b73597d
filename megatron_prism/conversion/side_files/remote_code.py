"""Keeps `auto_map` and the Python files that it names together: a folder has both or neither.

A config whose `auto_map` names a class in a missing file cannot be loaded with `trust_remote_code=True`. The files are
copied as text; nothing here imports or runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_prism.models.model_folder import CONFIG, TOKENIZER_CONFIG, read_json
from megatron_prism.pipeline.artifact import write_json

AUTO_MAP = "auto_map"
# The files in which transformers looks for an auto_map.
MAPPED = (CONFIG, TOKENIZER_CONFIG, "preprocessor_config.json", "processor_config.json")
# Classes of another repository are named 'owner/repository--module.Class'.
ELSEWHERE = "--"
RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|from\s+\.\s+import\s+(\w+))", re.MULTILINE)


def drop_incomplete_auto_maps(folder: Path) -> list[str]:
    """Remove every `auto_map` that needs a file which is not in this folder.

    The whole map is removed, not single entries: a config class from a file would not fit a model class of
    transformers.

    Returns:
        One line for each map that was removed, naming the missing file.
    """
    remarks = []
    for name in MAPPED:
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        missing = next((file for file in _needed(folder, content.get(AUTO_MAP)) if not file.is_file()), None)
        if missing is not None:
            del content[AUTO_MAP]
            write_json(path, content)
            remarks.append(
                f"{name}: auto_map needs {missing.name}, which is missing; the key is removed, so the classes of "
                "transformers are used"
            )
    return remarks


def _needed(folder: Path, auto_map: Any) -> Iterator[Path]:
    """The files that these classes need, and the files that those import, each once."""
    waiting = [folder / f"{module}.py" for module in _modules(auto_map)]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        yield file
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            for pair in RELATIVE_IMPORT.findall(text):
                waiting.append(folder / f"{pair[0] or pair[1]}.py")


def _modules(auto_map: Any) -> Iterator[str]:
    """The modules of these classes: a map, one class, or a list of classes, of which some may be null."""
    if isinstance(auto_map, dict):
        for value in auto_map.values():
            yield from _modules(value)
    elif isinstance(auto_map, list | tuple):
        for value in auto_map:
            yield from _modules(value)
    elif isinstance(auto_map, str) and ELSEWHERE not in auto_map:
        yield auto_map.rpartition(".")[0] or auto_map
