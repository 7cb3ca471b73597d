"""Messages between a grading pool and its workers: a length of four bytes (big-endian), then that many bytes of JSON.

The JSON is ASCII, so text with lone surrogates (a sampler can produce any bytes) arrives unchanged.
"""

from __future__ import annotations

import json
import struct
from typing import Any

HEADER = struct.Struct(">I")


def encode(message: dict[str, Any]) -> bytes:
    """One message as a frame."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def decode(buffer: bytearray) -> dict[str, Any] | None:
    """Remove the first complete frame from `buffer` and return its message; None while it is incomplete."""
    if len(buffer) < HEADER.size:
        return None
    (length,) = HEADER.unpack_from(buffer)
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    message: dict[str, Any] = json.loads(bytes(buffer[HEADER.size : end]))
    del buffer[:end]
    return message
