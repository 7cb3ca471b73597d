"""What a bare Python interpreter needs of this machine's files: itself, its standard library, their libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_prism.errors import ConfigError

# Folders of packages that lie inside the standard library's folder.
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
# `libm.so.6 => /lib/libm.so.6 (0x7f...)` or `/lib64/ld-linux-x86-64.so.2 (0x7f...)`.
_LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
# The loader's index of libraries: without it a library in an unusual folder is not found.
LOADER_CACHE = "/etc/ld.so.cache"


@dataclass(frozen=True)
class InterpreterFiles:
    """Absolute paths. `python` is the interpreter; `folders` and `files` are to be shown under their own names;
    `hidden` are folders inside `folders` that are to be covered."""

    python: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    hidden: tuple[str, ...]


@lru_cache(maxsize=1)
def interpreter_files() -> InterpreterFiles:
    """The files of the interpreter below this process's virtual environment.

    Raises:
        ConfigError: if `ldd`, which lists the libraries, does not run.
    """
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    base = {"installed_base": sys.base_prefix, "installed_platbase": sys.base_prefix, "base": sys.base_prefix}
    base["platbase"] = sys.base_prefix
    folders = sorted(
        {os.path.realpath(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")}
    )
    # Nothing inside has a screen, and its toolkit would bring thirteen libraries.
    extensions = [path for folder in folders for path in sorted(Path(folder).glob("lib-dynload/*.so"))]
    # Nothing inside has a screen, and Tk would bring a dozen libraries.
    binaries = [python, *(str(path) for path in extensions if not path.name.startswith("_tkinter"))]
    try:
        listing = subprocess.run(
            ["ldd", *binaries], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as reason:
        raise ConfigError(f"ldd does not run ({reason}); it lists the libraries of {python}") from None
    found = [path for path in (*_LIBRARY.findall(listing), LOADER_CACHE) if os.path.exists(path)]
    inside = tuple(f"{folder}/" for folder in folders)
    files = dict.fromkeys(path for path in found if not path.startswith(inside))
    hidden = [f"{folder}/{name}" for folder in folders for name in PACKAGE_FOLDERS]
    return InterpreterFiles(
        python, tuple(folders), tuple(files), tuple(path for path in hidden if os.path.isdir(path))
    )
