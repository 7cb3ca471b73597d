"""torch.save without the checksum of its zip container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_checksums() -> Iterator[None]:
    """Turn off torch.save's checksum: it takes longer than the write itself, and torch.load does not check it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
