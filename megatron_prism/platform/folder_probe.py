"""What a folder's file system can do, tried in a process that can be abandoned.

`python folder_probe.py FOLDER` tries the folder. With a second argument, the name of a file in it, it says what this
node of a job sees of that file. The answer is one line of JSON. A file server that does not answer blocks a process in
the kernel, so the caller (folder_checks.py) runs this file with a time limit. It imports only the standard library and
starts in milliseconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
import time

HELD = (errno.EWOULDBLOCK, errno.EACCES)


def probe(folder: str) -> dict[str, object]:
    """Write a file, compare its time with the clock, and try its lock from a second process; the file is removed.

    Returns:
        `free` and `total` bytes, `skew` in seconds (how far the file server's clock is ahead), and `flock`: "works" or
        what is wrong with it. If nothing can be written: `problem`.
    """
    try:
        space = os.statvfs(folder)
        before = time.time()
        handle, name = tempfile.mkstemp(prefix=".prism-doctor-", dir=folder)
        after = time.time()
    except OSError as problem:
        return {"problem": problem.strerror}
    try:
        os.write(handle, b"prism doctor")
        changed = os.fstat(handle).st_mtime
        lock = flock_between_processes(handle, name)
    except OSError as problem:
        return {"problem": problem.strerror}
    finally:
        os.close(handle)
        os.unlink(name)
    # A time between the two clock readings is no skew; coarse file times may lie a little before the first.
    skew = changed - after if changed > after else min(changed - before, 0.0)
    return {
        "free": space.f_bavail * space.f_frsize,
        "total": space.f_blocks * space.f_frsize,
        "skew": skew,
        "flock": lock,
    }


def flock_between_processes(handle: int, name: str) -> str:
    """Hold the lock here: a second process must be kept out, and must get it after the lock is given back."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return f"flock is not supported ({problem.strerror})"
    first = _in_second_process(name)
    fcntl.flock(handle, fcntl.LOCK_UN)
    second = _in_second_process(name)
    if first != "held":
        return f"a second process got the lock that this one holds ({first})"
    return "works" if second == "free" else f"a lock that was given back could not be taken ({second})"


def try_lock(name: str) -> str:
    """ "free" if the lock of the file could be taken (it is given back at once), "held", or the error."""
    try:
        handle = os.open(name, os.O_RDWR)
    except OSError as problem:
        return str(problem.strerror)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "free"
    except OSError as problem:
        return "held" if problem.errno in HELD else str(problem.strerror)
    finally:
        os.close(handle)


def seen_from_this_node(folder: str, token: str) -> dict[str, object]:
    """This node's name and clock, and whether it sees the caller's file `token` and its lock."""
    name = os.path.join(folder, token)
    seen = os.path.exists(name)
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "sees": seen,
        "flock": try_lock(name) if seen else "",
    }


def _in_second_process(name: str) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, try_lock(name).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return found


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1]) if len(sys.argv) == 2 else seen_from_this_node(*sys.argv[1:])))
