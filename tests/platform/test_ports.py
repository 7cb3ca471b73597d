"""Free ports for servers that will start soon."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from megatron_prism.platform import ports


def test_a_port_is_free_and_none_that_the_system_hands_out():
    for _ in range(20):
        port = ports.free_port()
        assert port < 32768
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_passed_over(monkeypatch):
    with socket.socket() as server:
        taken = ports.free_port()
        server.bind(("127.0.0.1", taken))
        server.listen()
        other = ports.free_port()
        drawn = iter([taken, taken, other])
        monkeypatch.setattr(
            ports.random, "SystemRandom", lambda: SimpleNamespace(randrange=lambda a, b: next(drawn))
        )
        assert ports.free_port() == other
        monkeypatch.setattr(
            ports.random, "SystemRandom", lambda: SimpleNamespace(randrange=lambda a, b: taken)
        )
        with pytest.raises(OSError, match="no free port between 20000 and 32000"):
            ports.free_port()
        assert not ports.is_free(taken)
        assert ports.is_free(other)
