"""Question: how much of the retrieval that the small model loses in mid-training do merge and extension recover?

    python benchmarks/restoration.py --seeds 1 2 3 --run-dir runs/restoration --json FILE

Runs the shoebox recipe up to its RULER stages (finished ones are skipped). Prints recall by length and model for every
seed, and the recovered share, (restored - mid-trained) / (base - mid-trained), over all lengths: per seed with a paired
bootstrap over samples, and over the seeds with Student's t interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import measure

from megatron_prism.evaluation.ruler.recovery import read_recalls, recovered
from megatron_prism.evaluation.ruler.scoring import Interval
from megatron_prism.study.registry import load_recipe

MODELS = ("base", "midtrain", "merge", "extend")
VARIANTS = ("extend_attention", "extend_unmerged", "extend_unmerged_attention")
# Student's t, two-sided 95 %, by degrees of freedom (any table of the distribution).
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def one_seed(model: str, seed: int, run_dir: Path, variants: bool) -> dict[str, Any]:
    """Recall by model and length, and the share that the later models recovered over all lengths."""
    graph = load_recipe("shoebox").build({"model": model, "seed": seed, "variants": variants})
    models = [*MODELS, *(VARIANTS if variants else ())]
    artifacts = {name: graph.run(run_dir, target=f"ruler_{name}")[f"ruler_{name}"] for name in models}
    recall = {
        name: {length: entry["recall"] for length, entry in artifact.metrics["lengths"].items()}
        for name, artifact in artifacts.items()
    }
    # Each task at each length is a separate stratum.
    scores = {
        name: {
            f"{task} {length}": by_index
            for length, tasks in read_recalls(artifact.path).items()
            for task, by_index in tasks.items()
        }
        for name, artifact in artifacts.items()
    }
    shares = {name: recovered(scores["base"], scores["midtrain"], scores[name]) for name in models[2:]}
    return {"seed": seed, "recall": recall, "recovered": {n: s and asdict(s) for n, s in shares.items()}}


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's t interval."""
    middle = mean(values)
    half = T_95[len(values) - 1] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(middle, middle - half, middle + half, "t over seeds")


def show(result: dict[str, Any]) -> None:
    for seed in result["seeds"]:
        print(f"seed {seed['seed']}")
        for name, recall in seed["recall"].items():
            share = seed["recovered"].get(name)
            recovered_share = "" if not share else f"   recovered {_percent(share)}"
            print(
                f"  {name:26}" + "".join(f"{100 * each:7.1f}" for each in recall.values()) + recovered_share
            )
    for name, share in result["recovered"].items():
        print(f"{name}: recovered {_percent(share)} over {len(result['seeds'])} seeds")


def _percent(share: dict[str, Any]) -> str:
    return f"{100 * share['mean']:.0f} % ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--model", choices=("dense", "hybrid"), default="dense")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/restoration"))
    parser.add_argument("--variants", action="store_true", help="also run the other rows of Table 7")
    arguments = parser.parse_args()
    seeds = [
        one_seed(arguments.model, seed, arguments.run_dir, arguments.variants) for seed in arguments.seeds
    ]
    names = list(seeds[0]["recovered"])
    shares = {name: [seed["recovered"][name] for seed in seeds] for name in names}
    result = {
        "seeds": seeds,
        # A seed without a significant loss has no recovered share; then there is no mean over the seeds.
        "recovered": {
            name: asdict(over_seeds([each["mean"] for each in each_seed]))
            for name, each_seed in shares.items()
            if all(each_seed)
        },
    }
    show(result)
    measure.write(arguments, result)


if __name__ == "__main__":
    main()
