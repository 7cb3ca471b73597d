"""Real text that lies on every machine with Python: package descriptions, the standard library's docstrings and source.

Nothing is imported or executed: source files are parsed.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_prism.errors import DataError

# Not written for readers: tests, generated tables, vendored copies, and the tables of character sets.
SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
    "_vendor",
}
# A longer file is a table of something.
LARGEST_SOURCE_BYTES = 150_000
SHORTEST_PROSE = 120
# One package's change log shall not be the whole of the web.
LONGEST_PROSE = 20_000
SENTENCE = re.compile(r"(?<![^\s])[A-Z][a-z]*\s[^.!?`<>{}\[\]()*#|=]{20,100}\.(?=\s)")


def prose_documents() -> Iterator[str]:
    """English prose: what installed packages say of themselves, then the docstrings of the standard library."""
    seen: set[str] = set()
    for text in (*_descriptions(), *_docstrings()):
        text = text.strip()[:LONGEST_PROSE]
        if len(text) >= SHORTEST_PROSE and text not in seen:
            seen.add(text)
            yield text


def code_documents() -> Iterator[str]:
    """The standard library's source files."""
    seen: set[str] = set()
    for path in source_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        # Packages hold many copies of the same few lines.
        if len(text) >= SHORTEST_PROSE and text not in seen:
            seen.add(text)
            yield text


def sentences(texts: Iterable[str]) -> list[str]:
    """What in these texts looks like a sentence of ordinary length, on one line each, no line twice."""
    found = (" ".join(sentence.split()) for text in texts for sentence in SENTENCE.findall(text))
    return list(dict.fromkeys(found))


def source_files() -> list[Path]:
    """The standard library's Python files that are worth reading, sorted.

    Raises:
        DataError: when this Python has none on disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1])
        and path.stat().st_size <= LARGEST_SOURCE_BYTES
    ]
    if not files:
        raise DataError(
            f"{root}: no .py files of the standard library; use a Python with its library on disk"
        )
    return files


def _descriptions() -> Iterator[str]:
    # Importing setuptools adds the packages inside it to sys.path. They are left out, so that the texts do not depend
    # on what this process has imported.
    found = {
        _field(each.metadata, "Name").lower(): each
        for each in importlib.metadata.distributions()
        if each.metadata and "_vendor" not in Path(str(each.locate_file(""))).parts
    }
    for name in sorted(found):
        metadata = found[name].metadata
        # Long descriptions are the body of METADATA, or the Description field of older packages.
        body = getattr(metadata, "get_payload", lambda: "")()
        yield body if isinstance(body, str) and body.strip() else _field(metadata, "Description")


def _field(metadata: importlib.metadata.PackageMetadata, name: str) -> str:
    """A header or ''; where the importlib_metadata package is loaded, asking for a missing one raises."""
    return (metadata[name] or "") if name in metadata else ""


def _docstrings() -> Iterator[str]:
    for path in source_files():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            # Some files of the library are wrong on purpose (lib2to3's test data).
            continue
        yield from _docstrings_of(tree)


def _docstrings_of(node: ast.AST) -> Iterator[str]:
    """A node's docstring and those of the classes and functions directly inside it, in order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
        for child in node.body:
            yield from _docstrings_of(child)
