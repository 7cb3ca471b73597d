"""Prompts that are evaluated several times during a run: the corpus's held-out suites, and prompts to track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.prompts import count_by_domain, load_prompts, rates_by_domain
from megatron_prism.rl.record import RLLog, write_answers
from megatron_prism.rl.rollout import Rollouts
from megatron_prism.verification.problems import Problem, load_suite, suite_names


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
    """`held_out` if the stage has a corpus, `tracked` if it has prompts to track; none if `evaluate_every` is 0."""
    sets: list[EvaluationSet] = []
    if not config.evaluate_every:
        return sets
    if "corpus" in inputs:
        folder = inputs["corpus"].file("problems")
        names = config.evaluation_suites or suite_names(folder)
        suites = [load_suite(folder, name, config.evaluation_problems) for name in names]
        problems = [problem for suite in suites for problem in suite]
        sets.append(EvaluationSet("held_out", problems, config.evaluation_samples))
    if "tracked" in inputs:
        sets.append(EvaluationSet("tracked", load_prompts(inputs["tracked"].path), config.evaluation_samples))
    return sets
