"""What `python file.py` does around a program: its module, its arguments, and everything that happens at its end.

At its end, Python waits for the threads that are not daemons, calls the functions registered with atexit, drops the
program's objects (which closes its files), and flushes the standard streams.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import os
import resource
import site
import sys
import types
from typing import Any

PACKAGE = "megatron_prism"
FILE_NAME = "solution.py"
# What Python allows by default.
RECURSION_LIMIT = 1000
# The frames of this package below the program's, which do not count.
OWN_FRAMES = 7
# The main thread's stack, as online judges allow, if the hard limit does: recursion through C uses it.
STACK_BYTES = 64 << 20
# Exit status of Python if the standard output cannot be flushed.
FLUSH_FAILED = 120
collect = gc.collect


def prepare_interpreter() -> None:
    """What is the same for every program, done once, in the folder in which they run.

    Adds what `site` adds to the builtins (`exit`, `quit`, `help`, `copyright`, ...), sets `sys.argv` and `sys.path[0]`
    as for a script, and the limit of the stack. Also removes this project's modules from `sys.modules`, so that a
    program cannot replace their functions by name.
    """
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.argv = [os.path.join(os.getcwd(), FILE_NAME)]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path.insert(0, os.getcwd())
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    # The first call of compile() in a process makes all types of syntax trees, which takes 0.3 ms.
    compile("", FILE_NAME, "exec")
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


def module(name: str, arguments: list[str]) -> types.ModuleType:
    """An empty module `name` for a program with these arguments."""
    if arguments:
        sys.argv += arguments
    made = types.ModuleType(name)
    namespace = vars(made)
    namespace["__file__"] = sys.argv[0]
    namespace["__builtins__"] = builtins
    if name == "__main__":
        namespace["__annotations__"] = {}
        namespace["__cached__"] = None
    # dataclasses, pickle and typing look up the module of a class.
    sys.modules[name] = made
    return made


def seed_chance(mentioned: set[str]) -> None:
    """Seed `random` if the program mentions it.

    The seed is the same for every program, like the hash seed: the same program must always get the same verdict.
    """
    if "random" in mentioned or "random" in sys.modules:
        importlib.import_module("random").seed(0)


def write_source(made: types.ModuleType, source: str) -> None:
    """Write the program to its file, for programs that read themselves, `inspect`, and processes that are spawned."""
    data = source.encode("utf-8")
    # Not open(), whose three layers cost a tenth of the whole start of a program.
    with contextlib.suppress(OSError):
        file = os.open(str(made.__file__), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        while data:
            data = data[os.write(file, data) :]
        os.close(file)


def set_recursion_limit(limit: int | None) -> None:
    """Set it so that the program can use all of it."""
    sys.setrecursionlimit((limit or RECURSION_LIMIT) + OWN_FRAMES)


def run(loaded: list[Any], *, any_exit: bool) -> int:
    """Run a main program to its end, and return the exit status.

    An exception other than SystemExit is raised again at once: the verdict is known then.

    Args:
        loaded: its code and its module. The list is emptied, so that the caller does not keep the program's objects.
        any_exit: every SystemExit is a status of 0, as in LiveCodeBench's harness.
    """
    status = 0
    made = loaded.pop()
    try:
        exec(loaded.pop(), vars(made))
    except SystemExit as left:
        status = 0 if any_exit else _status(left.code)
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    atexit = sys.modules.get("atexit")
    if atexit is not None:
        atexit._run_exitfuncs()
    status = status if _flush() else FLUSH_FAILED
    sys.modules.pop(made.__name__, None)
    del made
    collect()
    return status if _flush() else FLUSH_FAILED


def _status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(Exception):
        print(code, file=sys.stderr)
    return 1


def _flush() -> bool:
    flushed = True
    for stream in (sys.stdout, sys.__stdout__):
        if stream is None or getattr(stream, "closed", False):
            continue
        try:
            stream.flush()
        except Exception:
            flushed = False
    return flushed
