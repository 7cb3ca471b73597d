"""Question: what do mid-training, restoration and reinforcement learning of both small models achieve, over seeds?

    python benchmarks/quickstart.py --seeds 1 2 3 --run-dir runs/quickstart --json FILE

Runs the complete shoebox recipe for every model and seed (finished stages are skipped) and prints the tables of
docs/results/quickstart.md. Intervals over seeds are Student's t.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measure
from restoration import one_seed, over_seeds

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.study.registry import load_recipe
from megatron_prism.study.small_models import MODELS

SUITES = ("math", "science", "code")
# Name of the evaluated model in the recipe -> its name in the tables.
SCORED = {
    "base": "base",
    "midtrain": "mid-trained",
    "merge": "merged",
    "extend": "merged, extended",
    "rl_midtrain": "after RL",
}


def one_run(model: str, seed: int, run_dir: Path) -> dict[str, Any]:
    """All results of one model and seed."""
    folder = run_dir / f"{model}-{seed}"
    artifacts = load_recipe("shoebox").build({"model": model, "seed": seed}).run(folder)
    learned = artifacts["rl_midtrain"]
    return {
        "model": model,
        "scores": {name: artifacts[f"evaluate_{name}"].metrics["suites"] for name in SCORED},
        "reinforcement": {
            "before": learned.metrics["held_out"]["before"]["math"],
            "after": learned.metrics["held_out"]["after"]["math"],
            "base_after": artifacts["rl_base"].metrics["held_out"]["after"]["math"],
            "worst_gap": _worst_gap(learned),
        },
        "stage_seconds": {name: each.receipt.wall_seconds for name, each in artifacts.items()},
        **one_seed(model, seed, folder, variants=False),
    }


def _worst_gap(learned: Artifact) -> float:
    """The largest difference between trainer and sampler in the log-probability of one token, over all steps."""
    lines = (learned.path / "metrics.jsonl").read_text().splitlines()
    gaps = [line["gap"]["max_abs"] for line in map(json.loads, lines) if "gap" in line]
    return float(max(gaps))


def show(runs: Sequence[Mapping[str, Any]]) -> None:
    _row(
        "model",
        "seed",
        "mid-trained",
        "after RL",
        "T=1 before",
        "T=1 after",
        "gain",
        "recovered",
        "worst gap",
    )
    _row(*["---"] * 2, *["---:"] * 7)
    for run in runs:
        math = [_rate(run["scores"][name]["math"]) for name in ("midtrain", "rl_midtrain")]
        learned = run["reinforcement"]
        before, after = learned["before"], learned["after"]
        share = run["recovered"]["extend"]
        _row(
            *(run["model"], run["seed"], *math, f"{100 * before:.1f}", f"{100 * after:.1f}"),
            f"{100 * (after - before):+.1f}",
            "" if share is None else _share(share),
            f"{learned['worst_gap']:.1e}",
        )
    print()
    _row("model", "seed", "after", *SUITES, *runs[0]["recall"]["base"])
    _row(*["---"] * 3, *["---:"] * (len(SUITES) + len(runs[0]["recall"]["base"])))
    for run in runs:
        for name, called in SCORED.items():
            recall = run["recall"].get(name, {})
            _row(
                *(run["model"], run["seed"], called),
                *(f"{100 * run['scores'][name][suite]['pass_rate']:.1f}" for suite in SUITES),
                *(f"{100 * recall[length]:.1f}" if recall else "" for length in runs[0]["recall"]["base"]),
            )
    print()
    for model in dict.fromkeys(run["model"] for run in runs):
        for what, values in _over_seeds([run for run in runs if run["model"] == model]).items():
            print(f"{model}: {what} {_share(asdict(over_seeds(values)))} over {len(values)} seeds")


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Name of a quantity -> one number per seed."""
    shares = [run["recovered"]["extend"] for run in runs]
    return {
        "math, mid-trained": [run["scores"]["midtrain"]["math"]["pass_rate"] for run in runs],
        "gain by RL at T=1": [run["reinforcement"]["after"] - run["reinforcement"]["before"] for run in runs],
        "recovered": [share["mean"] for share in shares if share is not None],
    }


def _row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def _rate(suite: Mapping[str, float]) -> str:
    return f"{100 * suite['pass_rate']:.1f} ({100 * suite['low']:.1f} to {100 * suite['high']:.1f})"


def _share(share: Mapping[str, float]) -> str:
    return f"{100 * share['mean']:.0f} % ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"))
    arguments = parser.parse_args()
    runs = [one_run(model, seed, arguments.run_dir) for model in arguments.models for seed in arguments.seeds]
    show(runs)
    measure.write(arguments, {"runs": runs})


if __name__ == "__main__":
    main()
