"""The solvability frontier: pass rates over the steps of prompts that were unsolved at the start (paper, figure 10).

Prompts are grouped by the number of correct answers in the `difficulty` input, not by the run's own first evaluation: a
group that is chosen and measured by the same samples would seem to change by chance alone (regression to the mean).
A part of this effect remains: some of the prompts with 0 of 16 are easier than this number suggests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ArtifactError, ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import LARGEST_COUNT
from megatron_prism.pipeline.json_text import read_records
from megatron_prism.pipeline.stage import Stage
from megatron_prism.rl.difficulty import read_difficulty

TRACKED, FRONTIER = "tracked", "frontier.json"


@dataclass
class Frontier(Stage):
    """Inputs: `rl`, a run that had `tracked` prompts, and `difficulty`. Output: `frontier.json`.

    Attributes:
        counts: prompts with these numbers of correct answers are shown.
    """

    kind: ClassVar[str] = "frontier"

    counts: list[int] = field(default_factory=lambda: [0, 1])

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 0 or max(self.counts) > LARGEST_COUNT:
            raise ConfigError(
                f"counts={self.counts}: name at least one number of correct answers, each 0 or more and below 2^31"
            )

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        before = {each.problem.id: each.correct for each in read_difficulty(inputs["difficulty"].path)}
        found = frontier(inputs["rl"].path, before, self.counts)
        write_json(out / FRONTIER, found)
        return {"curves": found}


def frontier(run: Path, before: Mapping[str, int], counts: list[int]) -> list[dict[str, Any]]:
    """A curve per domain and count: `{"domain", "count", "prompts", "points": [[step, pass rate], ...]}`.

    Args:
        run: the folder of an `rl` artifact.
        before: the number of correct answers to each prompt at the start, by id.

    Raises:
        ArtifactError: if the run has no `tracked` prompts, or prompts that are not in `before`.
    """
    files = sorted((run / TRACKED).glob("step_*.jsonl.zst"))
    if not files:
        raise ArtifactError(f"{run / TRACKED}: no answers; give the rl stage `tracked` prompts to follow")
    rates: dict[tuple[str, int], dict[int, list[bool]]] = {}
    prompts: dict[tuple[str, int], set[str]] = {}
    for file in files:
        step = int(file.name.removeprefix("step_").split(".")[0])
        for answer in _answers(file):
            name = str(answer["id"])
            if name not in before:
                raise ArtifactError(
                    f"{file}: prompt '{name}' is not in the `difficulty` input; pass the one the prompts came from"
                )
            if before[name] in counts:
                key = (str(answer["domain"]), before[name])
                rates.setdefault(key, {}).setdefault(step, []).append(bool(answer["correct"]))
                prompts.setdefault(key, set()).add(name)
    return [
        {
            "domain": domain,
            "count": count,
            "prompts": len(prompts[domain, count]),
            "points": [[step, sum(right) / len(right)] for step, right in sorted(by_step.items())],
        }
        for (domain, count), by_step in sorted(rates.items())
    ]


def _answers(file: Path) -> list[dict[str, Any]]:
    try:
        return [record for record, _ in read_records(file, keep_half_pairs=True)]
    except DataError as problem:
        raise ArtifactError(f"{problem}; run the stage again") from None
