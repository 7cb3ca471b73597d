"""Hashes of files, computed by several threads: hashlib releases Python's lock while it hashes.

A file of up to `CHUNK_BYTES` has its sha256. A longer one has a tree hash, whose chunks are hashed in parallel: the
sha256 of the concatenated (binary) sha256 of its chunks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 64 << 20
_READ_BYTES = 1 << 20
# More threads than this wait for the disk.
_MAX_THREADS = 16


@dataclass(frozen=True)
class FileHash:
    """Size in bytes, hash in hex, and the chunk size of a tree hash; 0 stands for the plain sha256 of the file."""

    size: int
    sha256: str
    chunk_bytes: int


def hash_file(path: Path, chunk_bytes: int = 0) -> str:
    """The sha256 of a file's bytes in hex, or its tree hash with this chunk size."""
    if not chunk_bytes:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    return hash_files([path], chunk_bytes)[0].sha256


def hash_files(paths: Sequence[Path], chunk_bytes: int = CHUNK_BYTES) -> list[FileHash]:
    """Hash files in parallel; files longer than `chunk_bytes` get a tree hash."""
    sizes = [path.stat().st_size for path in paths]
    chunks = [range(0, max(size, 1), chunk_bytes) for size in sizes]
    parts = [(path, start) for path, starts in zip(paths, chunks, strict=True) for start in starts]
    with ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0)))) as threads:
        digests = threads.map(lambda part: _hash_chunk(part[0], part[1], chunk_bytes), parts)
        return [
            _combine(size, [next(digests) for _ in starts], chunk_bytes)
            for size, starts in zip(sizes, chunks, strict=True)
        ]


def _combine(size: int, digests: list[bytes], chunk_bytes: int) -> FileHash:
    if len(digests) == 1:
        return FileHash(size, digests[0].hex(), 0)
    return FileHash(size, hashlib.sha256(b"".join(digests)).hexdigest(), chunk_bytes)


def _hash_chunk(path: Path, start: int, chunk_bytes: int) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with open(path, "rb", buffering=0) as handle:
        handle.seek(start)
        left = chunk_bytes
        while left and (count := handle.readinto(buffer[: min(left, _READ_BYTES)])):
            digest.update(buffer[:count])
            left -= count
    return digest.digest()
