"""A model behind a port: start a server that really samples, kill it, and read the requests that it received."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time

from megatron_prism.platform.ports import free_port


class Server:
    """A server on a separate port, which a test can start and kill."""

    def __init__(self, supervisor, folder):
        self.supervisor = supervisor
        self.port = free_port()
        self.log = folder / "requests.jsonl"
        self.log.touch()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process = 0

    def start(self, **options):
        self.supervisor.stdin.write(json.dumps({"port": self.port, "log": str(self.log), **options}) + "\n")
        self.supervisor.stdin.flush()
        self.process = int(self.supervisor.stdout.readline())
        wait_for_port(self.port)
        return self

    @property
    def alive(self):
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self):
        """Kill the process, and return when it has ended and its port is free."""
        while self.process and self.alive:
            # The process may have ended after the check.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            time.sleep(0.01)

    @property
    def requests(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def bodies(self):
        """The body of each request; requests for the same completion have equal bodies."""
        return [json.dumps(request["body"], sort_keys=True) for request in self.requests]


def wait_for_port(port, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "the server ended before it listened"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"no server on port {port} after {seconds} s")
