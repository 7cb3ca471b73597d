"""Find a free port on this machine for a server that will start soon."""

from __future__ import annotations

import random
import socket

# Below the ports that Linux uses for outgoing connections (32768 and up): another process could take one of those
# before the server starts, and a probe of such a port can even connect to itself.
FIRST, LAST = 20_000, 32_000
TRIES = 100


def free_port() -> int:
    """A random port on which no process listens; at random, so that two callers get different ports.

    Raises:
        OSError: if many ports in a row are in use.
    """
    source = random.SystemRandom()
    for _ in range(TRIES):
        port = source.randrange(FIRST, LAST)
        if is_free(port, "127.0.0.1"):
            return port
    raise OSError(f"no free port between {FIRST} and {LAST} in {TRIES} tries")


def is_free(port: int, host: str = "") -> bool:
    """Whether a server could listen on this port of this machine: on all its addresses, or on one."""
    with socket.socket() as probe:
        # As servers do, to whom connections that have ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError:
            return False
    return True
