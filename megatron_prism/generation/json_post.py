"""One POST or GET of JSON, retried with growing waits while the server is unavailable or overloaded.

A broken connection, status 429 and status 5xx are retried. Every other error status is final.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from megatron_prism.errors import ConfigError, ServerError
from megatron_prism.pipeline.config import positive

MAX_WAIT = 60.0
TOO_MANY_REQUESTS, SERVER_FAILED = 429, 500
# Bad request, content too large, unprocessable content.
CONTENT_REFUSED = (400, 413, 422)
# A server's message is cut to this many characters.
MESSAGE_LENGTH = 300


class RequestRefused(ServerError):
    """The server refused this request with a final status. Another request may succeed."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def about_content(self) -> bool:
        """Whether the status speaks of this request's contents, not of the address, the key or the server."""
        return self.status in CONTENT_REFUSED


class _TryAgain(Exception):
    """A failure that may be temporary; `wait` is the number of seconds that the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class JsonEndpoint:
    """The address of an endpoint, and how requests are retried.

    Attributes:
        api_key: sent as a bearer token; never part of an error message.
        timeout: seconds without a byte from the server after which a request counts as failed.
        retries: maximum number of retries of a request.
        first_wait: seconds before the first retry. Each later wait is twice as long, up to MAX_WAIT. A longer
            `Retry-After` of the server is respected, up to the same limit.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    retries: int = 6
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.url}: not an http(s) address; use one like http://localhost:8000/v1")
        positive(self, "timeout", "first_wait")
        if self.retries < 0:
            raise ConfigError(f"retries={self.retries}: must be 0 or more")

    def post(self, body: dict[str, Any], stopped: Event) -> Any:
        """The JSON of the response. After `stopped` is set, there are no more retries.

        Raises:
            RequestRefused: for a final error status.
            ServerError: after the last retry, or if the response is not JSON.
        """
        return self._answer(json.dumps(body).encode(), stopped)

    def get(self) -> Any:
        """The JSON at the address; raises as `post` does."""
        return self._answer(None, Event())

    def _answer(self, data: bytes | None, stopped: Event) -> Any:
        waited, tries = 0.0, 0
        while True:
            tries += 1
            try:
                return self._once(data)
            except _TryAgain as problem:
                wait = min(max(self.first_wait * 2 ** (tries - 1), problem.wait), MAX_WAIT)
                if tries > self.retries or stopped.wait(wait):
                    raise ServerError(
                        f"{self.url}: {problem} (tries: {tries}, over {waited:.1f} s of waiting); "
                        f"check that the server runs, or raise retries={self.retries}"
                    ) from None
                waited += wait

    def _once(self, data: bytes | None) -> Any:
        request = urllib.request.Request(self.url, data, {"Content-Type": "application/json"})
        if self.api_key:
            # Not sent after a redirect: another host must not see the key.
            request.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                body = response.read()
        except urllib.error.HTTPError as refusal:
            reason = f"{refusal.code} {refusal.reason}: {_message(refusal)}"
            if refusal.code == TOO_MANY_REQUESTS or refusal.code >= SERVER_FAILED:
                raise _TryAgain(reason, _retry_after(refusal)) from None
            raise RequestRefused(f"{self.url}: {reason}", refusal.code) from None
        except (OSError, http.client.HTTPException) as problem:
            reason = str(getattr(problem, "reason", problem)) or type(problem).__name__
            raise _TryAgain(f"no response ({_line(reason)})") from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            shown = _line(body.decode(errors="replace"))[:60]
            raise ServerError(
                f"{self.url}: the response is not JSON ({shown!r}); check the address"
            ) from None


def _message(refusal: urllib.error.HTTPError) -> str:
    """The server's message in one line: OpenAI's `error.message`, FastAPI's `detail`, or the body itself."""
    try:
        text = refusal.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "no message"
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = text
    for key in ("error", "detail", "message"):
        if isinstance(message, dict):
            message = message.get(key, message)
    return _line(str(message))[:MESSAGE_LENGTH] or "no message"


def _retry_after(refusal: urllib.error.HTTPError) -> float:
    """Seconds; 0 if the header is missing or holds a date."""
    value = refusal.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _line(text: str) -> str:
    return " ".join(text.split())
