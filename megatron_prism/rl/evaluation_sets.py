"""Prompts that are evaluated several times during a run: the corpus's held-out suites, and prompts to track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.prompts import count_by_domain, load_prompts, rates_by_domain
from megatron_prism.rl.record import RLLog, write_answers
from megatron_prism.rl.rollout import Rollouts
from megatron_prism.verification.problems import Problem, load_suite, suite_names

PROBLEMS = "problems"


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts that are evaluated together.

    Attributes:
        name: the name of the set in the metrics.
        samples: number of answers per prompt.
    """

    name: str
    problems: Sequence[Problem]
    samples: int

    def evaluate(self, rollouts: Rollouts, step: int, log: RLLog | None, out: Path) -> None:
        """Sample the prompts with the weights of `step`; rank 0, which has the log, writes pass rates and answers."""
        groups = rollouts.groups(self.problems, self.samples, f"{self.name} {step}")
        if log is None:
            return
        rates = rates_by_domain(self.problems, [group.pass_rate for group in groups])
        counts = {domain: n * self.samples for domain, n in count_by_domain(self.problems).items()}
        log.evaluation(step, self.name, rates, counts)
        write_answers(out / self.name, step, groups)


def evaluation_sets(config: ReinforceConfig, inputs: Mapping[str, Artifact]) -> list[EvaluationSet]:
    """`held_out` if the corpus has problems, `tracked` if there are prompts to track; none if `evaluate_every` is 0.

    A corpus of the user's files has no problems.

    Raises:
        ConfigError: if `evaluation_suites` names suites and there are no problems.
    """
    sets: list[EvaluationSet] = []
    if not config.evaluate_every:
        return sets
    folder = inputs["corpus"].path / PROBLEMS if "corpus" in inputs else None
    if config.evaluation_suites and not (folder and folder.is_dir()):
        raise ConfigError(
            f"evaluation_suites={config.evaluation_suites}: the stage's corpus has no {PROBLEMS}/; leave "
            "evaluation_suites empty to evaluate only the tracked prompts"
        )
    if folder and folder.is_dir():
        names = config.evaluation_suites or suite_names(folder)
        suites = [load_suite(folder, name, config.evaluation_problems) for name in names]
        problems = [problem for suite in suites for problem in suite]
        sets.append(EvaluationSet("held_out", problems, config.evaluation_samples))
    if "tracked" in inputs:
        sets.append(EvaluationSet("tracked", load_prompts(inputs["tracked"].path), config.evaluation_samples))
    return sets
