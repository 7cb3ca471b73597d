"""The lock on an artifact: with flock, without it, and between machines that share only the file system."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline import artifact_lock as module
from megatron_prism.pipeline.artifact_lock import artifact_lock

HERE = "this-machine"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(module, "_host", lambda: HERE)


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def local_flock(monkeypatch):
    """flock that does not know of other machines: always granted."""
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)


def record_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.holder")


def write_holder(folder: Path, **fields) -> None:
    holder = {"host": "other-machine", "pid": 1, "born": "1", "token": "x", "beat": 0} | fields
    record_of(folder).write_text(json.dumps(holder))


def assert_free(folder: Path) -> None:
    with artifact_lock(folder):
        pass
    assert not list(folder.parent.iterdir()), "nothing is left"


@pytest.mark.parametrize("flock", ["flock", "no_flock", "local_flock"])
def test_a_second_job_is_told_who_holds_the_folder(flock, tmp_path, request, caplog):
    if flock != "flock":
        request.getfixturevalue(flock)
    folder = tmp_path / "train-1"
    told = rf"train-1: process {os.getpid()} on {HERE} is writing this artifact"
    with artifact_lock(folder), pytest.MonkeyPatch.context() as patch:
        # A local flock grants the lock twice on one machine only in this imitation: the second job is on another one.
        if flock == "local_flock":
            patch.setattr(module, "_host", lambda: "second-machine")
        with pytest.raises(ArtifactError, match=told), artifact_lock(folder):
            raise AssertionError("both hold it")
    assert_free(folder)
    assert ("does not support flock (Function not implemented)" in caplog.text) == (flock == "no_flock")


@pytest.mark.parametrize("flock", ["flock", "no_flock"])
def test_a_killed_holder_on_this_machine_is_replaced_at_once(flock, tmp_path, request):
    if flock == "no_flock":
        request.getfixturevalue(flock)
    folder = tmp_path / "train-1"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_holder(folder, host=HERE, pid=ended.pid)
    began = time.monotonic()
    assert_free(folder)
    assert time.monotonic() - began < 0.4
    # The number of an ended process is given to another one, which was born later.
    write_holder(folder, host=HERE, pid=os.getpid(), born="1")
    assert_free(folder)


@pytest.mark.parametrize("flock", ["local_flock", "no_flock"])
def test_a_silent_holder_on_another_machine_is_replaced_after_a_while(flock, tmp_path, request, caplog):
    request.getfixturevalue(flock)
    folder = tmp_path / "train-1"
    write_holder(folder)
    with caplog.at_level(logging.WARNING):
        assert_free(folder)
    assert "held by process 1 on other-machine; waiting" in caplog.text
    assert "gave no sign of life" in caplog.text


def test_a_record_that_is_half_written_is_taken_for_a_holder_until_it_is_stale(tmp_path, no_flock):
    folder = tmp_path / "train-1"
    record_of(folder).write_text('{"host": "ot')
    began = time.monotonic()
    assert_free(folder)
    assert time.monotonic() - began >= 0.5


def test_a_record_that_changed_hands_is_not_removed(tmp_path, no_flock):
    folder = tmp_path / "train-1"
    write_holder(folder, token="first")
    before = module._read(record_of(folder))
    write_holder(folder, token="second", pid=2)
    with pytest.raises(ArtifactError, match="process 2 on other-machine"):
        module._remove(folder, record_of(folder), before)
    assert module._read(record_of(folder)).token == "second"


def test_any_other_refusal_is_named(tmp_path, monkeypatch):
    def fail(handle, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    refused = pytest.raises(ArtifactError, match=r"cannot lock this file \(Input/output error\)")
    with refused, artifact_lock(tmp_path / "x"):
        raise AssertionError("it holds the lock")
