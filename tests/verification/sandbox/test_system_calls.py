"""The filter's instructions, interpreted in Python; test_bubblewrap.py tests that the kernel applies them."""

from __future__ import annotations

import errno
import struct

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.verification.sandbox.system_calls import (
    ARCHITECTURES,
    CLONE,
    CLONE3,
    PRLIMIT,
    REFUSED,
    seccomp_filter,
)

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
REFUSED_WITH = {code: 0x00050000 | code for code in (errno.EPERM, errno.ENOSYS)}


def decide(machine, number, argument=0, audit=None):
    """The decision of the filter for one call: an interpreter of its instructions."""
    program = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
    data = struct.pack("=IIQQ", number, audit or ARCHITECTURES[machine][1], 0, argument)
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, value = program[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
            code
        ]
        place += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_each_listed_call_is_refused_and_others_are_not(machine):
    column = ARCHITECTURES[machine][0]
    numbers = {calls[column] for calls in REFUSED.values() if calls[column] is not None}
    assert len(numbers) == sum(calls[column] is not None for calls in REFUSED.values())
    for number in range(480):
        if number in (CLONE[column], PRLIMIT[column]):
            continue
        expected = REFUSED_WITH[errno.EPERM] if number in numbers else ALLOWED
        assert decide(machine, number) == (
            REFUSED_WITH[errno.ENOSYS] if number == CLONE3[column] else expected
        ), number


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_arguments_decide_where_they_must(machine):
    column = ARCHITECTURES[machine][0]
    thread, fork, user = 0x3D0F00, 17, 0x10000000
    assert decide(machine, CLONE[column], thread) == decide(machine, CLONE[column], fork) == ALLOWED
    assert decide(machine, CLONE[column], user | fork) == REFUSED_WITH[errno.EPERM]
    assert decide(machine, PRLIMIT[column], 0) == ALLOWED
    assert decide(machine, PRLIMIT[column], 1) == REFUSED_WITH[errno.EPERM]


def test_another_calling_convention_is_no_way_around():
    assert decide("x86_64", 101, audit=0x40000003) == KILLED
    assert decide("x86_64", 0x40000000 | 101) == REFUSED_WITH[errno.EPERM]


def test_an_unknown_architecture_is_named():
    with pytest.raises(ConfigError, match="architecture vax"):
        seccomp_filter("vax")
