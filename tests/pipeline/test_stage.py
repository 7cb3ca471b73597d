from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toy_stages import Inner, Write


@dataclass
class WriteNext(Write):
    version: ClassVar[int] = 2


@dataclass
class Other(Write):
    kind: ClassVar[str] = "other"


def test_fingerprint_is_the_config_that_decides_the_output() -> None:
    one = Write().fingerprint({"x": "1"})
    assert Write().fingerprint({"x": "1"}) == one
    assert Write(log_every=100).fingerprint({"x": "1"}) == one
    assert Write(inner=Inner(threads=2)).fingerprint({"x": "1"}) == one
    changed = {
        Write(text="b").fingerprint({"x": "1"}),
        Write(inner=Inner(lr=0.2)).fingerprint({"x": "1"}),
        Write().fingerprint({"x": "2"}),
        Write().fingerprint({"y": "1"}),
        WriteNext().fingerprint({"x": "1"}),
        Other().fingerprint({"x": "1"}),
    }
    assert len(changed | {one}) == 7


def test_order_of_inputs_does_not_matter() -> None:
    assert Write().fingerprint({"a": "1", "b": "2"}) == Write().fingerprint({"b": "2", "a": "1"})
