"""The files that a bare Python interpreter needs: the interpreter, its standard library and their shared libraries."""

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

# Folders inside the standard library's folder that hold installed packages.
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
# `libm.so.6 => /lib/libm.so.6 (0x7f...)` or `/lib64/ld-linux-x86-64.so.2 (0x7f...)`.
_LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
# The loader's index of libraries. Without it, libraries in unusual folders are not found.
LOADER_CACHE = "/etc/ld.so.cache"


@dataclass(frozen=True)
class InterpreterFiles:
    """Absolute paths. `python` is the interpreter; `folders` and `files` are mounted at the same paths; `hidden` are
    folders inside `folders` that are covered by empty ones."""

    python: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    hidden: tuple[str, ...]


@lru_cache(maxsize=1)
def interpreter_files() -> InterpreterFiles:
    """The files of the interpreter on which this process's virtual environment is based.

    Raises:
        ConfigError: if `ldd`, which lists the libraries, cannot be run.
    """
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    base = {"installed_base": sys.base_prefix, "installed_platbase": sys.base_prefix, "base": sys.base_prefix}
    base["platbase"] = sys.base_prefix
    folders = sorted(
        {os.path.realpath(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")}
    )
    extensions = [path for folder in folders for path in sorted(Path(folder).glob("lib-dynload/*.so"))]
    # Tk is left out: programs have no screen, and it needs thirteen libraries.
    binaries = [python, *(str(path) for path in extensions if not path.name.startswith("_tkinter"))]
    try:
        listing = subprocess.run(
            ["ldd", *binaries], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as reason:
        raise ConfigError(
            f"ldd, which lists the libraries of {python}, cannot be run ({reason}); install it (Debian: libc-bin)"
        ) from None
    found = [path for path in (*_LIBRARY.findall(listing), LOADER_CACHE) if os.path.exists(path)]
    inside = tuple(f"{folder}/" for folder in folders)
    files = dict.fromkeys(path for path in found if not path.startswith(inside))
    hidden = [f"{folder}/{name}" for folder in folders for name in PACKAGE_FOLDERS]
    return InterpreterFiles(
        python, tuple(folders), tuple(files), tuple(path for path in hidden if os.path.isdir(path))
    )
