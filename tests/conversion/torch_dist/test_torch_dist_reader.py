"""Garbage collection while tensors are read."""

from __future__ import annotations

import gc

import pytest

from megatron_prism.conversion.torch_dist.reader import quick_collection


@pytest.fixture
def counted(monkeypatch):
    """The calls of `gc.unfreeze`; nothing is really frozen in the process of the tests."""
    thaws = []
    for name in ("collect", "freeze"):
        monkeypatch.setattr(gc, name, lambda: 0)
    monkeypatch.setattr(gc, "unfreeze", lambda: thaws.append(1))
    return thaws


@pytest.mark.parametrize(("frozen", "expected"), [(0, [1]), (900_000, [])])
def test_objects_frozen_before_stay_frozen(counted, monkeypatch, frozen, expected):
    """After unfreezing, each later collection of the process visited all imported objects."""
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen)
    with quick_collection():
        pass
    assert counted == expected
