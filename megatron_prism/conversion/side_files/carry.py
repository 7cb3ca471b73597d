"""Copies the files next to the weights of a Hugging Face folder, and names those that are not copied.

Import, training, export, merge and quantize all copy with these functions, so all of them keep the same files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from megatron_prism.conversion.side_files.remote_code import MAPPED, drop_incomplete_auto_maps
from megatron_prism.models.model_folder import (
    CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_FILES,
    read_json,
)
from megatron_prism.pipeline.json_text import BYTE_ORDER_MARK, FETCH_LFS, LFS_POINTER

# Patterns of file names, compared without case. A pattern with '/' matches files in a subfolder.
TOKENIZER_PATTERNS = (
    *TOKENIZER_FILES,
    *("tokenizer.model.*", "*.tiktoken", "*.bpe.model", "spiece.model", "vocab.txt"),
    *("*.jinja", "additional_chat_templates/*"),
)
CODE_PATTERNS = ("*.py",)
LEGAL_PATTERNS = ("license*", "licence*", "copying*", "notice*", "*use_policy*")
CARRIED_PATTERNS = (
    CONFIG,
    GENERATION_CONFIG,
    *TOKENIZER_PATTERNS,
    *("preprocessor_config.json", "processor_config.json"),
    *CODE_PATTERNS,
    *LEGAL_PATTERNS,
)
# Files that must be JSON objects. They are checked first, so that no unreadable folder is written.
OBJECTS = (*MAPPED, GENERATION_CONFIG, SPECIAL_TOKENS_MAP, "added_tokens.json")
# Weights, their indexes, and files of training programs. They are not copied, and no remark names them.
NOT_SIDE_FILES = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.npz"),
    *("*.index.json", ".*"),
)


def carry_files(source: Path, target: Path) -> list[str]:
    """Copy config, generation config, tokenizer, chat templates, code and licence, byte for byte, if they exist.

    There are two exceptions: an `auto_map` whose files are missing is removed, and so is a byte order mark in JSON.

    Returns:
        Remarks, one line each: files that were not copied or are not valid, and what was removed.

    Raises:
        CheckpointError: naming a file that should be a JSON object and is not.
    """
    for name in OBJECTS:
        if (source / name).is_file():
            read_json(source / name)
    target.mkdir(parents=True, exist_ok=True)
    remarks = copy_files(source, target, CARRIED_PATTERNS)
    inside = target.resolve()
    not_carried = [
        name
        for name in _names(source)
        if not _matches(name, (*CARRIED_PATTERNS, *NOT_SIDE_FILES))
        # The output folder may be inside the source.
        and not inside.is_relative_to((source / name).resolve())
    ]
    if not_carried:
        remarks.append(f"{source}: not copied: {', '.join(not_carried)}")
    return remarks + drop_incomplete_auto_maps(target)


def replace_tokenizer(source: Path, target: Path) -> list[str]:
    """Replace the tokenizer files of `target` by those of `source`, with the code that they name.

    Returns:
        Remarks: an `auto_map` that was removed, and files that are not valid.
    """
    for name in matching(target, TOKENIZER_PATTERNS):
        (target / name).unlink()
    remarks = copy_files(source, target, TOKENIZER_PATTERNS)
    for name in matching(source, CODE_PATTERNS):
        if not (target / name).exists():
            shutil.copyfile(source / name, target / name)
    return remarks + drop_incomplete_auto_maps(target)


def copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy the files that match these patterns. Links become files, and JSON loses its byte order mark.

    Returns:
        Remarks: links to missing files, pointers of Git LFS, and removed byte order marks.
    """
    marked = []
    remarks = [
        f"{source / name}: not copied: a link to a missing file, as after an unfinished download"
        for name in sorted(path.name for path in source.iterdir() if path.is_symlink() and not path.exists())
        if _matches(name, patterns)
    ]
    for name in matching(source, patterns):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        with open(target / name, "rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            remarks.append(f"{source / name}: {FETCH_LFS}")
        elif start.startswith(BYTE_ORDER_MARK) and name.endswith(".json"):
            (target / name).write_bytes((target / name).read_bytes().removeprefix(BYTE_ORDER_MARK))
            marked.append(name)
    if marked:
        remarks.append(
            f"{source}: {', '.join(marked)}: copied without the byte order mark, which transformers cannot read"
        )
    return remarks


def matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """The names of the folder's files that match one of the patterns, in order; `a/b` for a file in a folder `a`."""
    return [name for name in _names(folder) if not name.endswith("/") and _matches(name, patterns)]


def _names(folder: Path) -> Iterator[str]:
    """Every file, every file in the folders that patterns name, and other folders as 'NAME/'."""
    entered = {pattern.partition("/")[0] for pattern in CARRIED_PATTERNS if "/" in pattern}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path.name
        elif path.is_dir() and path.name in entered:
            yield from (f"{path.name}/{inner.name}" for inner in sorted(path.iterdir()) if inner.is_file())
        elif path.is_dir():
            yield f"{path.name}/"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # In fnmatch '*' also matches '/', so a pattern without '/' must not match a name with one.
    return any(
        fnmatch(name.lower(), pattern)
        for pattern in patterns
        if ("/" in pattern) == ("/" in name.rstrip("/"))
    )
