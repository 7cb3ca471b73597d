"""One submission of a run folder at a time: a second one must see the jobs of the first before it sends its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_prism.errors import ArtifactError, ConfigError
from megatron_prism.launching.job_file import LAUNCH
from megatron_prism.pipeline.artifact_lock import artifact_lock


@contextmanager
def submission_lock(run_dir: Path) -> Iterator[None]:
    """Hold the lock on the submissions of a run folder; it goes with the process that holds it.

    Raises:
        ConfigError: if another process is submitting; the message names it.
    """
    (run_dir / LAUNCH).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(artifact_lock(run_dir / LAUNCH / "submission"))
        except ArtifactError as problem:
            raise ConfigError(
                f"--run-dir {run_dir}: another `prism run` submits from this folder at this moment ({problem}); "
                "run the same command again when it has submitted, to wait for its jobs"
            ) from None
        yield
