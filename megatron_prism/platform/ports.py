"""A port of this machine for a server that starts a moment later."""

from __future__ import annotations

import random
import socket

# Below the ports that Linux hands to outgoing connections (32768 and up): one of those could be taken by any process
# in between, and a probe of it can even be connected with itself.
FIRST, LAST = 20_000, 32_000
TRIES = 100


def free_port() -> int:
    """A port on which nothing listens; drawn at random, so two callers do not get the same.

    Raises:
        OSError: when many ports in a row are taken.
    """
    source = random.SystemRandom()
    for _ in range(TRIES):
        port = source.randrange(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port between {FIRST} and {LAST} in {TRIES} tries")
