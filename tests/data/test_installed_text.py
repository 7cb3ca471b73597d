"""Text of installed packages: the same documents in every process."""

from __future__ import annotations

import sys
from pathlib import Path

import setuptools

from megatron_prism.data.installed_text import descriptions


def test_the_texts_do_not_depend_on_what_the_process_has_imported(monkeypatch):
    inside = str(Path(setuptools.__file__).parent / "_vendor")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != inside])
    before = list(descriptions())
    monkeypatch.setattr(sys, "path", [*sys.path, inside])
    assert list(descriptions()) == before
