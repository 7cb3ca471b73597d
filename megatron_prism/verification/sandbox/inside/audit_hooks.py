"""The process of the weak mode: limits, and Python's audit hooks against accidents. It is not isolation.

It is started as a module of a bare interpreter (no site-packages), with the channel's descriptor as its argument.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from megatron_prism.verification.sandbox.inside.program import serve
from megatron_prism.verification.sandbox.inside.script import prepare_interpreter

# Audit events (docs.python.org/3/library/audit_events.html) that no answer needs and that could do harm.
# fmt: off
FORBIDDEN = frozenset({
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen",
    "pty.spawn", "os.kill", "os.killpg", "ctypes.dlopen", "socket.__new__", "resource.setrlimit",
    "shutil.rmtree", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown",
    "os.link", "os.symlink",
})
# fmt: on


def main() -> None:
    """Serve the one job on the channel."""
    # Only this project is imported from there; a program may import only the standard library.
    sys.path.remove(os.environ.pop("PYTHONPATH"))
    # The channel gets the lowest free number, whatever the parent has open, so that a program that writes to all its
    # descriptors always reaches it, and gets the same verdict every time.
    inherited = int(sys.argv[1])
    channel = os.dup(inherited)
    os.close(inherited)
    names = json.loads(os.environ.pop("PRISM_LENDABLE_NAMES"))
    prepare_interpreter()
    serve(channel, names, protect=_guard)


def _guard() -> None:
    """Refuse processes, sockets, signals, deletions, and writing files outside the working directory."""
    forbidden = FORBIDDEN
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, join = os.path.realpath, os.path.join
    inside = join(realpath(os.getcwd()), "")

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in forbidden:
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and arguments[2] & writing and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            if not realpath(path).startswith(inside) and path != os.devnull:
                raise PermissionError(f"writing {path} is not allowed here")

    sys.addaudithook(guard)


if __name__ == "__main__":
    main()
