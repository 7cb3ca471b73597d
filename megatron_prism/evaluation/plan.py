"""What an evaluation samples: the problems of each suite, how many completions of each, and how they are sampled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.generation.engine import SamplingParams, prompt_seeds
from megatron_prism.pipeline.config import from_mapping, positive, seeds
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.verification.problems import Problem, read_suite, subset, suite_names

# Next to `problems/` of an artifact with suites: how each is sampled, its group and its source.
SUITES = "suites.json"
PROBLEMS_FOLDER = "problems"
# Facts that have a place of their own in a plan.
PLANNED = ("sampling", "samples", "group", "dropped")
# What a suite measures, for the retention report.
DOMAIN, GENERAL, LONG = "domain", "general", "long"


@dataclass
class SuiteSampling:
    """How completions are sampled; a field that is None is as the suite says, or as `SamplingParams` has it.

    Attributes:
        seed: the samples of a problem follow from this seed and its prompt.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            positive(self, "max_new_tokens")
        seeds(self, "seed")
        self.over({})

    def over(self, suite: Mapping[str, Any]) -> SamplingParams:
        """The parameters of a suite, which come from `suite` where this config has none."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return from_mapping(SamplingParams, {**suite, **{k: v for k, v in own.items() if v is not None}})


@dataclass(frozen=True)
class SuitePlan:
    """One suite of an evaluation.

    Attributes:
        samples: completions per problem.
        seeds: of each problem's prompt, among all prompts of the suite, so that a limit does not change them.
        dropped: id -> why no answer to this problem can be graded.
        facts: what the suite's artifact records about it, such as its source and licence.
    """

    name: str
    problems: list[Problem]
    params: SamplingParams
    samples: int
    seeds: list[int]
    group: str = DOMAIN
    dropped: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def completions(self) -> int:
        return self.samples * len(self.problems)


def read_plan(
    corpus: Path,
    suite: str,
    sampling: SuiteSampling,
    *,
    samples: int | None = None,
    limit: int | None = None,
) -> SuitePlan:
    """The plan of one suite of a corpus, or of an artifact of suites.

    Args:
        samples: completions per problem; None: as the suite says, else 1.
        limit: number of problems; None: all.

    Raises:
        DataError: for a suite that is missing or malformed.
    """
    problems, dropped = read_suite(corpus / PROBLEMS_FOLDER, suite)
    facts = read_facts(corpus).get(suite, {})
    chosen = subset(problems, limit)
    by_id = dict(
        zip(
            [problem.id for problem in problems],
            prompt_seeds(sampling.seed, [problem.prompt for problem in problems]),
            strict=True,
        )
    )
    try:
        return SuitePlan(
            suite,
            chosen,
            sampling.over(facts.get("sampling", {})),
            samples or int(facts.get("samples", 1)),
            [by_id[problem.id] for problem in chosen],
            facts.get("group", DOMAIN),
            {**facts.get("dropped", {}), **dropped},
            {key: value for key, value in facts.items() if key not in PLANNED},
        )
    except (ConfigError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(f"{corpus / SUITES}: suite '{suite}': {problem}; make the suites again") from None


def read_facts(corpus: Path) -> dict[str, Any]:
    """What `suites.json` says of each suite; empty for a corpus without one."""
    file = corpus / SUITES
    return read_object(file) if file.is_file() else {}


def chosen_suites(corpus: Path, names: Collection[str]) -> list[str]:
    """The suites to evaluate: those that are named, else all of the corpus, in the order of its `suites.json`."""
    return list(names) or list(read_facts(corpus)) or suite_names(corpus / PROBLEMS_FOLDER)
