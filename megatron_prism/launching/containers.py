"""Containers of nemo-run's Docker executor that end without a word: killed, out of memory, or removed by somebody.

nemo-run knows how a container ended from a file that the container writes last. Without this file it waits for ever,
so it is written here for a container that is gone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_prism.errors import ServerError

POLL_SECONDS = 5.0
# As of a process that was killed.
EXIT_CODE = 137


@contextmanager
def watcher() -> Iterator[Callable[[Any], None]]:
    """Gives a function that watches the containers of an experiment, until the block ends.

    The block must enclose that of the experiment, because nemo-run waits where the experiment's block ends.
    """
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def watch(made: Any) -> None:
        threads.append(threading.Thread(target=_watch, args=(made, ended), daemon=True))
        threads[-1].start()

    try:
        yield watch
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def check_daemon() -> None:
    """Raise a ServerError if no Docker daemon answers."""
    import docker

    try:
        docker.from_env(version="auto").close()
    except docker.errors.DockerException as problem:
        raise ServerError(
            f"kind: docker: no Docker daemon answers ({problem}); start it, or set DOCKER_HOST"
        ) from None


def _watch(made: Any, ended: threading.Event) -> None:
    import docker

    missed: set[str] = set()
    client = docker.from_env()
    try:
        while not ended.wait(POLL_SECONDS):
            try:
                gone = {job.id for job in made.jobs if _is_gone(client, job)}
            except docker.errors.DockerException:
                # A daemon that restarts says nothing about its containers.
                continue
            for job in made.jobs:
                # Twice, because a container that has not begun is not there either.
                if job.id in gone & missed and (file := _status_file(job)):
                    file.write_text(json.dumps({"id": _number(job), "exit_code": str(EXIT_CODE)}))
            missed = gone
    finally:
        client.close()


def _is_gone(client: Any, job: Any) -> bool:
    from nemo_run.core.execution.docker import LABEL_ID

    if not job.handle or (file := _status_file(job)) is None or file.exists():
        return False
    return not client.containers.list(all=True, filters={"label": f"{LABEL_ID}={_number(job)}"})


def _number(job: Any) -> str:
    """nemo-run's name of the running job, by which the container is labelled."""
    return str(job.handle.rpartition("/")[2])


def _status_file(job: Any) -> Path | None:
    """Where the container writes how it ended; None before nemo-run has started it."""
    from nemo_run.core.execution.docker import DockerJobRequest

    request = DockerJobRequest.load(app_id=_number(job))
    return Path(request.executor.job_dir) / f"status_{request.containers[0].name}.out" if request else None
