"""Evaluations of many models on many suites: receipts of an artifact that exists, with other names and scores."""

from __future__ import annotations

import dataclasses
import random

from megatron_prism.evaluation.statistics.intervals import wilson_interval
from megatron_prism.pipeline.artifact import Artifact

# Names as long as those of the recipes' stages and of the packaged suites.
MODELS = (
    *("base", "midtrain", "merge", "extend", "extend_attention", "rl_base", "rl_midtrain", "rl_mcs_balanced"),
    *("extend_midtrain_attention", "rl_midtrain_unbalanced"),
)
SUITES = (
    *("aime24", "aime25", "aime26", "math500", "livecodebench", "codeforces", "gpqa_diamond"),
    *("leaderboard_mmlu_pro", "leaderboard_bbh", "hellaswag", "winogrande", "truthfulqa_mc2"),
)


def many_models(artifact: Artifact, models: tuple[str, ...], suites: tuple[str, ...]) -> dict[str, Artifact]:
    """A training stage for each model, and its evaluation."""
    chance = random.Random(1)
    made = {}
    for number, model in enumerate(models):
        fingerprint = f"{number:032x}"
        trained = dataclasses.replace(
            artifact.receipt, kind="train", fingerprint=fingerprint, stage=model, metrics={}, inputs={}
        )
        scores = {suite: score(chance.randrange(501)) for suite in suites}
        evaluated = dataclasses.replace(
            artifact.receipt,
            fingerprint=f"{number + 500:032x}",
            stage=f"evaluate_{model}",
            inputs={"model": fingerprint},
            metrics={"suites": scores},
        )
        made[model] = Artifact(artifact.path, trained)
        made[f"evaluate_{model}"] = Artifact(artifact.path, evaluated)
    return made


def score(passed: int, problems: int = 500) -> dict:
    low, high = wilson_interval(passed, problems)
    return {
        "pass_rate": passed / problems,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "interval": "wilson",
        "problems": problems,
        "samples": problems,
    }
