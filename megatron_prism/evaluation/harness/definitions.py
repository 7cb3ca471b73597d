"""Suites of lm-eval tasks, as data: which tasks, which metric of each, and how a score is normalised and averaged.

`leaderboard-v1.yaml` and `leaderboard-v2.yaml` beside this file are the two Open LLM Leaderboards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.yaml_file import load_yaml

TASKS, PROBLEMS = "tasks", "problems"
NO_FILTER = "none"


@dataclass(frozen=True)
class Benchmark:
    """One number of a suite.

    Attributes:
        tasks: names of lm-eval's tasks or groups -> number of answers that a guess chooses from; 0: not normalised.
        metrics: lm-eval's names; the score of a task is their mean, and its problems are counted by the first.
        filter: the filter of lm-eval whose answers are scored.
        num_fewshot: examples in the prompt; None: as the task says.
        nltk: data of nltk that lm-eval's metric needs.
        mean_of: "tasks": the mean of the tasks' normalised scores; "problems": all problems together, then normalised.
    """

    name: str
    tasks: dict[str, int]
    metrics: tuple[str, ...]
    filter: str = NO_FILTER
    num_fewshot: int | None = None
    mean_of: str = TASKS
    nltk: str | None = None


def suite_names() -> list[str]:
    """The suites of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


@cache
def read_suite(name: str) -> tuple[Benchmark, ...]:
    """The benchmarks of a suite, whose scores are averaged.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in suite_names():
        raise ConfigError(f"suites: no suite '{name}' of lm-eval tasks{suggest(name, suite_names())}")
    benchmarks = []
    for title, given in load_yaml(Path(__file__).with_name(f"{name}.yaml"))["benchmarks"].items():
        tasks = given.get("choices") or dict.fromkeys(given["tasks"], 0)
        one_of(given.get("mean_of", TASKS), (TASKS, PROBLEMS), f"{name}: {title}: mean_of")
        benchmarks.append(
            Benchmark(
                title,
                dict(tasks),
                tuple(given["metrics"]),
                given.get("filter", NO_FILTER),
                given.get("num_fewshot"),
                given.get("mean_of", TASKS),
                given.get("nltk"),
            )
        )
    return tuple(benchmarks)
