"""The names of suites that users give, by the kind of stage that evaluates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.harness.stage import GENERAL
from megatron_prism.evaluation.suites.yaml_definition import packaged_suites
from megatron_prism.pipeline.placeholder import is_placeholder

LONG = "long"
# Before the name of a task of lm-eval.
LM_EVAL = "lm-eval:"


@dataclass(frozen=True)
class SuiteNames:
    """Suites of problems (packaged, files or folders), suites and tasks of lm-eval, and whether RULER is asked for."""

    problems: list[str]
    general: list[str]
    long: bool


def sort_suites(names: Sequence[str], option: str) -> SuiteNames:
    """What each name stands for.

    Args:
        option: what the user set, for error messages.

    Raises:
        ConfigError: for a name that is no suite, or one that occurs twice.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"{option}{','.join(names)}: a suite is named twice")
    problems, general = [], []
    known = (*packaged_suites(), *GENERAL, LONG)
    for name in names:
        if name in GENERAL or name.startswith(LM_EVAL):
            general.append(name.removeprefix(LM_EVAL))
        elif name in packaged_suites() or is_placeholder(name) or Path(name).exists():
            problems.append(name)
        elif name != LONG:
            raise ConfigError(
                f"{option}{name}: neither a suite nor a file{suggest(name, known)}; suites are {', '.join(known)}, "
                f"{LM_EVAL}TASK, a YAML file, or a folder with a file SUITE.jsonl per benchmark"
            )
    return SuiteNames(problems, general, LONG in names)
