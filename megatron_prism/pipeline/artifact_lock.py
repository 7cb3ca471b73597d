"""The lock on an artifact's folder: one job writes it, and a second one is told which job that is.

Two things hold together. `flock` on `.NAME.lock` decides between processes of one machine, and between machines where
the file system shares it. `.NAME.holder` names the host and process that hold the folder, with a counter that a thread
raises every `BEAT_SECONDS`. It decides where `flock` is not supported (Lustre without the mount option, some FUSE file
systems) or is local to each machine. Clocks are not compared: a holder on another machine is gone if its counter stands
still for `STALE_SECONDS`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_prism.errors import ArtifactError
from megatron_prism.platform.console import get_logger

BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

log = get_logger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder; `token` tells two runs with an equal host and pid apart."""

    host: str
    pid: int
    born: str
    token: str
    beat: int = 0

    @property
    def is_dead(self) -> bool:
        """Whether it is certain, because this machine shows it, that the process has ended."""
        return self.host == _host() and self.born != _born(self.pid)


@contextmanager
def artifact_lock(folder: Path) -> Iterator[None]:
    """Hold the lock on `folder`.

    Raises:
        ArtifactError: if another process holds it; the message names its host and process.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    record = folder.with_name(f".{folder.name}.holder")
    handle = _flock(folder, lock, record)
    try:
        mine = _take(folder, record, has_flock=handle is not None)
        stop = threading.Event()
        beats = threading.Thread(target=_beat, args=(record, mine, stop), daemon=True, name="artifact-lock")
        beats.start()
        try:
            yield
        finally:
            stop.set()
            beats.join()
            if _same(_read(record), mine):
                record.unlink(missing_ok=True)
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _flock(folder: Path, lock: Path, record: Path) -> int | None:
    """A descriptor that holds `flock` on `lock`; None if the file system does not support it."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(handle)
            if problem.errno in _UNSUPPORTED:
                lock.unlink(missing_ok=True)
                log.warning(
                    "%s: this file system does not support flock (%s); the file %s takes its place",
                    folder.parent,
                    problem.strerror,
                    record.name,
                )
                return None
            if problem.errno not in (errno.EAGAIN, errno.EACCES):
                raise ArtifactError(f"{lock}: cannot lock this file ({problem.strerror})") from None
            raise _held(folder, _read(record)) from None
        # The file may have been removed, and made anew by a third process, between `open` and `flock`.
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
        os.close(handle)


def _take(folder: Path, record: Path, *, has_flock: bool) -> Holder:
    """Write the record of this process, once an earlier holder is known to be gone."""
    mine = Holder(_host(), os.getpid(), _born(os.getpid()), uuid.uuid4().hex)
    while True:
        try:
            handle = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            found = _read(record)
            # On one machine flock is decisive: whoever wrote this record has released it.
            if not (has_flock and found is not None and found.host == mine.host):
                _wait_until_gone(folder, record, found)
            _remove(folder, record, found)
            continue
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(asdict(mine)))
        return mine


def _wait_until_gone(folder: Path, record: Path, found: Holder | None) -> None:
    """Return when the holder is known to have ended, or its counter stood still; an ArtifactError if it lives."""
    if found is not None and found.is_dead:
        return
    if found is not None and found.host == _host():
        raise _held(folder, found)
    where = f"process {found.pid} on {found.host}" if found else "another process"
    log.warning("%s: held by %s; waiting up to %.0f s for a sign of life", folder, where, STALE_SECONDS)
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(0.5, STALE_SECONDS / 10))
        now = _read(record)
        if now is None and not record.exists():
            return
        if now != found:
            raise _held(folder, now)
    log.warning("%s: %s gave no sign of life for %.0f s; taking over", folder, where, STALE_SECONDS)


def _remove(folder: Path, record: Path, found: Holder | None) -> None:
    """Remove the record of a holder that is gone, but not one that a third process has put in its place."""
    aside = record.with_name(f"{record.name}.{uuid.uuid4().hex}")
    try:
        os.rename(record, aside)
    except FileNotFoundError:
        return
    now = _read(aside)
    if now != found:
        with suppress(OSError):
            os.link(aside, record)
        aside.unlink()
        raise _held(folder, now)
    aside.unlink()


def _beat(record: Path, mine: Holder, stop: threading.Event) -> None:
    temporary = record.with_name(f"{record.name}.{mine.token}")
    count = 0
    while not stop.wait(BEAT_SECONDS):
        if not _same(_read(record), mine):
            log.error("%s: another process has taken over this artifact; stop one of the two", record)
            return
        count += 1
        # A file system that is full or away for a moment must not end the job.
        with suppress(OSError):
            temporary.write_text(json.dumps(asdict(replace(mine, beat=count))))
            os.replace(temporary, record)


def _held(folder: Path, holder: Holder | None) -> ArtifactError:
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return ArtifactError(f"{folder}: {who} is writing this artifact; wait for it to finish, or stop it")


def _same(found: Holder | None, mine: Holder) -> bool:
    return found is not None and found.token == mine.token


def _read(record: Path) -> Holder | None:
    """The holder in a record; None if the record is missing or only half written."""
    try:
        return Holder(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _host() -> str:
    return socket.gethostname()


def _born(pid: int) -> str:
    """The start time of a process of this machine, in clock ticks; empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]
