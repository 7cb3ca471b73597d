"""lm-evaluation-harness as an optional dependency: whether it is there, and how to keep it quiet."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec

import numpy

from megatron_prism.errors import ConfigError

# The seeds that lm-eval's own command sets before it loads tasks; some tasks shuffle their choices with them.
RANDOM_SEED, NUMPY_SEED = 0, 1234


def require_lm_eval() -> None:
    """Raise a ConfigError unless lm-eval is installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "lm-eval is not installed, and the general suites are its tasks; install the extra: pip install "
            "'megatron-prism[harness]'"
        )


def versions() -> dict[str, str]:
    """Of the packages that decide prompts and metrics."""
    return {name: metadata.version(name) for name in ("lm-eval", "datasets", "math-verify")}


@contextmanager
def seeded() -> Iterator[None]:
    """Python's and numpy's global random numbers as lm-eval's command leaves them for its first task."""
    before = random.getstate(), numpy.random.get_state()
    random.seed(RANDOM_SEED)
    numpy.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's log lines and the progress bars of lm-eval and datasets; errors stay."""
    import datasets
    from lm_eval.api import task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels, bar = [logger.level for logger in loggers], task.tqdm
    shown = not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task.tqdm = lambda documents, **_: documents
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
        task.tqdm = bar
