"""A file in a stage's partial folder asks its processes to stop, whichever way they were launched.

The launcher writes it on the first signal. `touch RUN_DIR/artifacts/KIND-FINGERPRINT.partial/resume/stop` does the
same.
"""

from __future__ import annotations

from pathlib import Path

from megatron_prism.pipeline.artifact import RESUME

STOP = f"{RESUME}/stop"


def ask_to_stop(partial: Path) -> None:
    """Ask the processes that work on `partial` to stop."""
    (partial / STOP).parent.mkdir(exist_ok=True)
    (partial / STOP).touch()


def asked_to_stop(partial: Path) -> bool:
    return (partial / STOP).exists()


def forget(partial: Path) -> None:
    """Remove a request that an earlier attempt followed."""
    (partial / STOP).unlink(missing_ok=True)
