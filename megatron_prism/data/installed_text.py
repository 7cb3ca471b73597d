"""Real text that every machine with Python has: package descriptions, and the standard library's docstrings and source.

Source files are parsed, and never imported or executed.
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

# Folders whose text is not written for readers: tests, generated tables, vendored copies, tables of character sets.
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
# Longer files are mostly tables.
MAX_SOURCE_BYTES = 150_000
MIN_CHARACTERS = 120
# A limit, so that one package's change log does not dominate the source.
MAX_CHARACTERS = 20_000
SENTENCE = re.compile(r"(?<![^\s])[A-Z][a-z]*\s[^.!?`<>{}\[\]()*#|=]{20,100}\.(?=\s)")


def prose_documents() -> Iterator[str]:
    """English prose: the descriptions of installed packages, then the docstrings of the standard library."""
    seen: set[str] = set()
    for text in (*descriptions(), *_docstrings()):
        text = text.strip()[:MAX_CHARACTERS]
        if len(text) >= MIN_CHARACTERS and text not in seen:
            seen.add(text)
            yield text


def code_documents() -> Iterator[str]:
    """The standard library's source files."""
    seen: set[str] = set()
    for path in source_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        # Packages contain many copies of the same few lines.
        if len(text) >= MIN_CHARACTERS and text not in seen:
            seen.add(text)
            yield text


def sentences(texts: Iterable[str]) -> list[str]:
    """The parts of these texts that look like sentences of ordinary length, one per line and without duplicates."""
    found = (" ".join(sentence.split()) for text in texts for sentence in SENTENCE.findall(text))
    return list(dict.fromkeys(found))


def source_files() -> list[Path]:
    """The standard library's Python files, without tests and tables, sorted.

    Raises:
        DataError: if this Python has none on disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1])
        and path.stat().st_size <= MAX_SOURCE_BYTES
    ]
    if not files:
        raise DataError(
            f"{root}: no .py files of the standard library; use a Python with its library on disk"
        )
    return files


def descriptions() -> Iterator[str]:
    """The descriptions of installed packages, sorted by the packages' names: the texts of their pages on an index."""
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
    """A header or ''. If the importlib_metadata package is loaded, reading a missing header raises."""
    return (metadata[name] or "") if name in metadata else ""


def docstrings_of_file(path: Path) -> Iterator[str]:
    """The docstrings of a source file, its modules', classes' and functions', in order; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        # Some files of the library are invalid on purpose (lib2to3's test data).
        return
    yield from _docstrings_of(tree)


def _docstrings() -> Iterator[str]:
    for path in source_files():
        yield from docstrings_of_file(path)


def _docstrings_of(node: ast.AST) -> Iterator[str]:
    """A node's docstring and those of the classes and functions directly inside it, in order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
        for child in node.body:
            yield from _docstrings_of(child)
