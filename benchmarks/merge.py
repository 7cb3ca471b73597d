"""Question: how long does a merge take, compared with mergekit and with `cp`, and is every element rounded correctly?

    python benchmarks/merge.py --mergekit VENV/bin/mergekit-yaml --before CHECKOUT --gigabytes 2 --rounds 5

mergekit is installed in a separate environment, whose Python is in the same folder as `mergekit-yaml`. CHECKOUT is
another working tree of this project; its code is timed as a further side. The sides alternate, each in a separate
process. `seconds` counts from the start of the merge, after the imports; `whole` counts from the start of the process.
Processor time, over all cores, depends least on other load of the machine. `cp` copies one checkpoint (the bytes that a
merge writes), `cp-all` copies all (the bytes that it reads). Before the clock starts, old outputs are removed, disk
writes are flushed, and as much memory as a side will fill is touched and freed (see convert.py). Peak memory is the
process's maximum resident size, including imports; mergekit maps its inputs, and mapped pages count as resident
although the kernel could reclaim them.

At the end, every element of the results is compared with the correctly rounded sum. The exact sum has the decimals
below as weights and the elements of the files, all as rational numbers. The result must be the nearest bf16 number, or
the even one of two equally near numbers. The check uses fp64 where all its steps are exact, which it verifies, and
`fractions.Fraction` elsewhere. A sample of elements is always computed in fractions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import measure
from convert import GIGABYTE, TOUCH, make_checkpoint

# Method -> weights as typed. For task arithmetic, these are the weights of all models except the base.
WEIGHTS = {"linear": ("0.15", "0.85"), "task-arithmetic": ("0.4", "0.7")}
SAMPLE = 20_000
PEER = """
import json, subprocess, sys, time
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
plan, target, touch, nbytes = sys.argv[1:]
config = MergeConfiguration.model_validate(yaml.safe_load(open(plan)))
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
began = time.perf_counter()
subprocess.run([sys.executable, "-c", touch, nbytes], check=True)
clock, cpu = time.perf_counter(), time.process_time()
run_merge(config, target, options=options)
seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
# Not from getrusage, whose maximum includes the process that started this one.
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "touching": clock - began,
                  "cpu_seconds": cpu_seconds, "peak_bytes": peak}))
"""


def inputs(method: str, folder: Path) -> list[Path]:
    """The checkpoints; task arithmetic's base is the first."""
    return [folder / name for name in ("a", "b", "c")[: 2 if method == "linear" else 3]]


def linear_weights(method: str) -> list[Fraction]:
    """The equivalent weights of all checkpoints in a linear merge."""
    weights = list(map(Fraction, WEIGHTS[method]))
    return weights if method == "linear" else [1 - sum(weights), *weights]


def merge_once(side: str, method: str, folder: Path, target: Path, *, touched: int) -> dict[str, float]:
    """One merge (or copy) in this process, which was started for it."""
    from megatron_prism.merging.merge import MergeSettings, merge, plan_merge

    sources = inputs(method, folder)
    base, models = (None, sources) if method == "linear" else (sources[0], sources[1:])
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", TOUCH, str(touched)], check=True)
    clock, cpu = time.perf_counter(), _cpu_seconds()
    if side in ("prism", "before"):
        target.mkdir()
        weights = [float(weight) for weight in WEIGHTS[method]]
        merge(plan_merge(MergeSettings(method=method, weights=weights), models, base=base), target)
    else:
        for source in sources[: 1 if side == "cp" else None]:
            (target / source.name).mkdir(parents=True)
            files = [str(file) for file in source.glob("*.safetensors")]
            subprocess.run(["cp", *files, str(target / source.name)], check=True)
    return {
        "seconds": time.perf_counter() - clock,
        "touching": clock - began,
        "cpu_seconds": _cpu_seconds() - cpu,
        "peak_bytes": measure.memory_bytes("VmHWM"),
    }


def _cpu_seconds() -> float:
    """Processor time of this process and of the `cp`s it started."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def run_side(
    side: str, method: str, folder: Path, *, python: Path, before: Path | None, touched: int
) -> dict[str, float]:
    """One side of one round."""
    target = folder / side
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    command = [sys.executable, __file__, "--once", side, method, str(folder), str(target), str(touched)]
    if side == "mergekit":
        command = [str(python), "-c", PEER, str(folder / "plan.yaml"), str(target), TOUCH, str(touched)]
    tree = before if side == "before" and before else Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    whole = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "whole": whole - result["touching"]}


def compare(method: str, folder: Path, result: Path) -> dict[str, float]:
    """Count the elements that are not the correctly rounded sum, and compute the error relative to the exact sum."""
    import torch

    from megatron_prism.conversion.hf_folder.reader import HFFolder

    sources, merged = [HFFolder(path) for path in inputs(method, folder)], HFFolder(result)
    draw, wrong, elements, by_fractions, squares, error_squares = random.Random(0), 0, 0, 0, 0.0, 0.0
    for name, shape in merged.shapes.items():
        for row in range(0, shape[0], 2048):
            rows = (min(2048, shape[0] - row), *shape[1:])
            *terms, found = (torch.empty(rows, dtype=torch.bfloat16) for _ in range(len(sources) + 1))
            for source, out in zip((*sources, merged), (*terms, found), strict=True):
                source.read(name, row, out)
            terms, found = [term.flatten() for term in terms], found.flatten()
            right, certain, exact = check(terms, linear_weights(method), found)
            sample = draw.sample(range(found.numel()), min(found.numel(), SAMPLE // 1000))
            places = {*(~certain).nonzero().flatten().tolist(), *sample}
            for place in places:
                truth = nearest([term[place] for term in terms], linear_weights(method))
                assert not certain[place] or bool(right[place]) == (float(found[place]) == truth)
                right[place] = float(found[place]) == truth
            wrong += int((~right).sum())
            elements += found.numel()
            by_fractions += len(places)
            squares += float(exact.square().sum())
            error_squares += float((found.double() - exact).square().sum())
    return {
        "elements": elements,
        "wrong_elements": wrong,
        "by_fractions": by_fractions,
        "relative_error": math.sqrt(error_squares / squares),
    }


def check(terms: list[Any], weights: list[Fraction], found: Any) -> tuple[Any, Any, Any]:
    """Whether each bf16 number is the correctly rounded sum, whether that is certain, and the sum itself.

    With weights `p_i / q`, the products `p_i x_i` and q times a midpoint are exact in fp64. TwoSum (Knuth) shows
    whether a sum is exact, too.
    """
    import torch

    q = math.lcm(*(weight.denominator for weight in weights))
    total = torch.zeros_like(found, dtype=torch.float64)
    certain = torch.ones_like(found, dtype=torch.bool)
    for term, weight in zip(terms, weights, strict=True):
        product = term.double() * int(weight * q)
        following = total + product
        part = following - total
        certain &= (total - (following - part)) + (product - part) == 0
        total = following
    infinity = torch.tensor(math.inf, dtype=torch.bfloat16)
    low, high = (
        q * (found.double() + torch.nextafter(found, end).double()) / 2 for end in (-infinity, infinity)
    )
    even = found.view(torch.int16) & 1 == 0
    right = ((total > low) | ((total == low) & even)) & ((total < high) | ((total == high) & even))
    return right, certain, total / q


def nearest(elements: list[Any], weights: list[Fraction]) -> float:
    """The exact sum for one element, correctly rounded by the definition (for normal bf16 numbers and zero)."""
    exact = sum(weight * Fraction(float(each)) for weight, each in zip(weights, elements, strict=True))
    if not exact:
        return 0.0
    exponent = math.floor(math.log2(abs(exact)))
    if Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    elif Fraction(2) ** (exponent + 1) <= abs(exact):
        exponent += 1
    unit = Fraction(2) ** (exponent - 7)
    return float(round(exact / unit) * unit)


def benchmark(
    method: str,
    *,
    gigabytes: float,
    rounds: int,
    mergekit: Path | None,
    before: Path | None,
    folder: Path,
) -> dict[str, Any]:
    """Time all rounds, then check the results."""
    import torch

    sources = inputs(method, folder)
    for seed, source in enumerate(sources):
        torch.manual_seed(seed)
        make_checkpoint("dense", gigabytes, source)
    models = [
        {"model": str(source), "parameters": {"weight": float(weight)}}
        for source, weight in zip(sources[-len(WEIGHTS[method]) :], WEIGHTS[method], strict=True)
    ]
    plan = {
        "merge_method": method.replace("-", "_"),
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
        "models": models,
        **({} if method == "linear" else {"base_model": str(sources[0])}),
    }
    # JSON is YAML.
    (folder / "plan.yaml").write_text(json.dumps(plan))
    size = sum(file.stat().st_size for file in (folder / "a").glob("*.safetensors"))
    merging = ["prism", *(["before"] if before else []), *(["mergekit"] if mergekit else [])]
    sides = ["cp", "cp-all", *merging]
    python = mergekit.with_name("python") if mergekit else Path()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    # One round that does not count: the first pass reads cold files.
    for number in range(rounds + 1):
        for side in sides:
            measured = run_side(side, method, folder, python=python, before=before, touched=int(1.5 * size))
            print(f"round {number} {side:9} {measured['seconds']:7.2f} s", file=sys.stderr)
            if number:
                found[side].append(measured)
    medians = {
        side: {
            key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "whole")
        }
        for side, runs in found.items()
    }
    return {
        "bytes": size,
        "runs": found,
        "medians": medians,
        "method": method,
        "peak_bytes": {side: max(run["peak_bytes"] for run in found[side]) for side in merging},
        "against_the_exact_sum": {side: compare(method, folder, folder / side) for side in merging},
    }


def show(result: dict[str, Any]) -> None:
    medians = result["medians"]
    print(f"{result['method']} merge of checkpoints of {result['bytes'] / GIGABYTE:.2f} GB, medians:")
    for side, median in medians.items():
        peak = result["peak_bytes"].get(side)
        times = "   ".join(
            f"{key.replace('_', ' ')} {median[key]:7.2f}" for key in ("seconds", "cpu_seconds", "whole")
        )
        print(f"  {side:9} {times}" + (f"   peak {peak / 2**20:,.0f} MiB" if peak else ""))
    ours = medians["prism"]
    for side in ("cp", "cp-all"):
        print(f"  prism takes {ours['seconds'] / medians[side]['seconds']:.2f}x the time of {side}")
    if "mergekit" in medians:
        peer = medians["mergekit"]
        print(
            f"  prism is {peer['seconds'] / ours['seconds']:.1f}x as fast as mergekit after the imports, "
            f"{peer['whole'] / ours['whole']:.1f}x as a whole process"
        )
    if "before" in medians:
        ratios = {
            key: statistics.median(
                new[key] / old[key]
                for new, old in zip(result["runs"]["prism"], result["runs"]["before"], strict=True)
            )
            for key in ("seconds", "cpu_seconds")
        }
        print(
            f"  prism takes {ratios['seconds']:.2f}x the time of the other checkout, "
            f"{ratios['cpu_seconds']:.2f}x the processor time (medians of the rounds' ratios)"
        )
    for side, error in result["against_the_exact_sum"].items():
        print(
            f"  {side:9} {error['wrong_elements']:,} of {error['elements']:,} elements are not the correctly rounded "
            f"sum ({error['by_fractions']:,} of them checked in fractions); relative error "
            f"{error['relative_error']:.3e}"
        )


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--mergekit", type=Path, help="path of mergekit-yaml; default: mergekit is not timed")
    parser.add_argument("--before", type=Path, help="another checkout of this project, timed as well")
    parser.add_argument("--method", choices=WEIGHTS, default="linear")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder for the temporary files; default: the system's")
    parser.add_argument("--once", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        side, method, folder, target, touched = arguments.once
        print(json.dumps(merge_once(side, method, Path(folder), Path(target), touched=int(touched))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        result = benchmark(
            arguments.method,
            gigabytes=arguments.gigabytes,
            rounds=arguments.rounds,
            mergekit=arguments.mergekit,
            before=arguments.before,
            folder=Path(root),
        )
    show(result)
    measure.write(arguments, {"results": result})


if __name__ == "__main__":
    main()
