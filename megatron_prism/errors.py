"""Every error a user can cause, one class per kind of mistake.

A `PrismError` is the user's mistake (bad input, bad config, a damaged folder): the command line prints its one line
and exits with code 2, never a traceback. Any other exception is a bug and keeps its traceback.

The message names the file, the key, the value and the remedy; `suggest` finds the remedy for a misspelt name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# The exit code of a run that stopped on request and goes on when it is started again: EX_TEMPFAIL of sysexits.h. A
# batch script requeues the job on it.
REQUEUE_EXIT = 75
# The exit code for a mistake of the user, and for a stage that failed.
USER_ERROR_EXIT = 2


class Requeue(BaseException):
    """A run that was asked to stop has stopped; the same command goes on from what it saved. Not an error."""


class PrismError(Exception):
    """Base of all errors that the user can fix."""


class ConfigError(PrismError):
    """A config key or value that is unknown, of the wrong type, or impossible."""


class ParallelError(ConfigError):
    """Parallel sizes that do not match the number of processes, or do not divide a length evenly."""


class DataError(PrismError):
    """A data file that is missing, empty, damaged or in the wrong format."""


class ArtifactError(PrismError):
    """An artifact folder that is half written, damaged, or not of the expected kind."""


class CheckpointError(PrismError):
    """A checkpoint that is damaged or belongs to another architecture."""


class ServerError(PrismError):
    """A server that does not answer, refuses a request, or sends an incomplete response."""


class TrainingError(PrismError):
    """A run whose loss or gradients are not finite, so that more steps would not help."""


class StageFailed(PrismError):
    """A stage's worker processes failed; the message names the log."""


class WorkerLost(StageFailed):
    """A worker process crashed or was killed, so that starting the stage again may help."""


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'X'?" with the nearest of `known`, or all of `known` if none is similar."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
