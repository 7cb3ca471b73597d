"""The records of a run of reinforcement learning: metrics, a console line per step, and the sampled answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError, DataError
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.json_text import read_records
from megatron_prism.platform.console import get_logger
from megatron_prism.rl.rollout import Group
from megatron_prism.rl.step_report import StepReport
from megatron_prism.training.metrics import RunLog
from megatron_prism.training.trackers import Tracker

ANSWERS, METRICS = "answers", "metrics.jsonl"

log = get_logger(__name__)


class RLLog(RunLog):
    """metrics.jsonl, TensorBoard, trackers and one console line per step."""

    def __init__(self, out: Path, steps: int, resume_step: int, trackers: Sequence[Tracker] = ()) -> None:
        super().__init__(out, resume_step, trackers)
        self.steps = steps

    def step(self, step: int, report: StepReport, lr: float) -> None:
        record = {"step": step, "lr": lr, **report.record()}
        self.write(record)
        self.scalars("rl", record, step)
        gap = record.get("gap", {})
        log.info(
            "step %d/%d | reward %.3f | pass %.1f%% | none %.0f%% all %.0f%% | length %.0f (cut %.0f%%) | "
            "kl %.4f | gap %.1e | grad norm %.3f | %s | ETA %.0f s",
            *(step, self.steps, record["reward"], 100 * record["pass_rate"]["all"]),
            *(100 * record["solve_none"], 100 * record["solve_all"]),
            *(record["mean_length"], 100 * record["truncated"], record.get("kl", 0.0)),
            *(gap.get("max_abs", 0.0), record.get("grad_norm", 0.0)),
            " ".join(f"{name} {value:.1f}s" for name, value in record["seconds"].items()),
            self.seconds_left(step, self.steps),
        )

    def evaluation(self, step: int, name: str, rates: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Log the pass rates of an evaluation set; `counts` are answers per domain."""
        self.write({"step": step, "evaluation": name, "pass_rate": dict(rates), "answers": dict(counts)})
        self.scalars(name, rates, step)
        log.info("step %d | %s | %s", step, name, " | ".join(f"{d} {100 * r:.1f}%" for d, r in rates.items()))


def write_answers(folder: Path, step: int, groups: Sequence[Group]) -> None:
    """All answers of a step as `step_NNNNNNN.jsonl.zst` in `folder`; the file is complete or absent."""
    with record_writer(folder / f"step_{step:07d}.jsonl.zst") as write:
        for group in groups:
            for index, answer in enumerate(group.answers):
                completion = answer.completion
                write(
                    {
                        "id": group.problem.id,
                        "domain": group.problem.domain,
                        "sample": index,
                        "prompt": group.problem.prompt,
                        "completion": completion.text,
                        "tokens": len(completion.token_ids),
                        "finish_reason": completion.finish_reason,
                        "reason": answer.grade.reason,
                        "extracted": answer.grade.extracted,
                        "reward": answer.reward.value,
                        "parts": answer.reward.parts,
                        "correct": answer.reward.correct,
                    }
                )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        ArtifactError: if it is missing or damaged.
    """
    try:
        return [record for record, _ in read_records(folder / METRICS)]
    except DataError as problem:
        raise ArtifactError(f"{problem}; run the stage again") from None


def steps_without_signal(folder: Path, step: int) -> int:
    """How many steps in a row, up to `step`, had groups of equal rewards only, which give no gradient.

    Lines of later steps are ignored: a killed run may have left them, and the last one may be incomplete.
    """
    count = 0
    if not step:
        return count
    for text in (folder / METRICS).read_text().splitlines():
        line = json.loads(text)
        if line["step"] > step:
            break
        if "dropped_groups" in line:
            count = count + 1 if line["dropped_groups"] == line["groups"] else 0
    return count


def evaluations(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[int, dict[str, float]]:
    """Step -> pass rate by domain, for the evaluation set of this name."""
    return {line["step"]: line["pass_rate"] for line in metrics if line.get("evaluation") == name}
