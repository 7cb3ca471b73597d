"""Garbage collection while tensors are read."""

from __future__ import annotations

import gc

import pytest

from megatron_prism.conversion.torch_dist.reader import quick_collection


@pytest.fixture
def counted(monkeypatch):
    """Thaws of frozen objects; nothing is frozen or thawed in the tests' own process."""
    thaws = []
    for name in ("collect", "freeze"):
        monkeypatch.setattr(gc, name, lambda: 0)
    monkeypatch.setattr(gc, "unfreeze", lambda: thaws.append(1))
    return thaws


@pytest.mark.parametrize(("frozen", "expected"), [(0, [1]), (900_000, [])])
def test_what_was_frozen_before_stays_frozen(counted, monkeypatch, frozen, expected):
    """Thawing everything made each later collection of a process visit all that it had imported."""
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen)
    with quick_collection():
        pass
    assert counted == expected
