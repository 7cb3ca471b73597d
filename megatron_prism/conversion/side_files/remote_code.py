"""`auto_map` and the Python files it names: both lie in a folder, or neither.

A config whose `auto_map` names a class in a file that is not there cannot be loaded with `trust_remote_code=True`. The
files are copied as text; nothing here imports or runs them.
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
# A class of another repository is named 'owner/repository--module.Class'.
ELSEWHERE = "--"
RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|from\s+\.\s+import\s+(\w+))", re.MULTILINE)


def drop_incomplete_auto_maps(folder: Path) -> list[str]:
    """Remove every `auto_map` that needs a file this folder does not hold.

    The whole map goes and not one entry: a config class from a file beside a model class of transformers would not
    fit each other.

    Returns:
        One line for each map that was removed, naming the file that is missing.
    """
    said = []
    for name in MAPPED:
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        missing = next((file for file in _needed(folder, content.get(AUTO_MAP)) if not file.is_file()), None)
        if missing is not None:
            del content[AUTO_MAP]
            write_json(path, content)
            said.append(
                f"{name}: its auto_map needs {missing.name}, which did not come with it; the key is dropped, so the "
                "classes of transformers are used"
            )
    return said


def _needed(folder: Path, auto_map: Any) -> Iterator[Path]:
    """Every file that these classes need, with the files which those import, each once."""
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
    """The modules of the classes named: a map, a class, or a list of classes of which some may be null."""
    if isinstance(auto_map, dict):
        for value in auto_map.values():
            yield from _modules(value)
    elif isinstance(auto_map, list | tuple):
        for value in auto_map:
            yield from _modules(value)
    elif isinstance(auto_map, str) and ELSEWHERE not in auto_map:
        yield auto_map.rpartition(".")[0] or auto_map
