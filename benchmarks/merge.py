"""A linear merge of two checkpoints, beside mergekit and beside `cp`, on the same machine and disk in one run.

    python benchmarks/merge.py --mergekit VENV/bin/mergekit-yaml --gigabytes 2 --rounds 5 --out results.json

mergekit lives in an environment of its own, whose Python stands beside `mergekit-yaml`. Sides take turns, each in a
process of its own. `seconds` runs from the start of the merge, after the imports; `whole` from the start of the
process; processor time, over all cores, is what a busy machine changes least. Copying is of one checkpoint (the bytes
that a merge writes) and of both (the bytes that it reads). Outside the clock, before each: old outputs are removed, the
disk's writes are flushed, and as much memory as a side will fill is touched and freed (see convert.py). Peak memory is
the process's resident maximum, imports included; mergekit maps its inputs, whose pages count as resident although the
kernel could take them back. At the end every element of both results is compared with an fp32 reference that is rounded
once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from convert import GIGABYTE, TOUCH, make_checkpoint
from measure import header, write

WEIGHTS = (0.15, 0.85)
SIDES = ("cp", "cp-both", "prism", "mergekit")
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
# Not getrusage's figure, which begins with that of the process that started this one.
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "touching": clock - began,
                  "cpu_seconds": cpu_seconds, "peak_bytes": peak}))
"""


def merge_once(side: str, folder: Path, target: Path, touched: int) -> dict[str, float]:
    """One merge (or copy) in this process, which was started for it."""
    from megatron_prism.merging.merge import MergeSettings, merge, plan_merge

    inputs = [folder / "a", folder / "b"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", TOUCH, str(touched)], check=True)
    clock, cpu = time.perf_counter(), _cpu_seconds()
    if side == "prism":
        target.mkdir()
        merge(plan_merge(MergeSettings(weights=WEIGHTS), inputs), target)
    else:
        for source in inputs[: 1 if side == "cp" else 2]:
            (target / source.name).mkdir(parents=True)
            files = [str(file) for file in source.glob("*.safetensors")]
            subprocess.run(["cp", *files, str(target / source.name)], check=True)
    return {
        "seconds": time.perf_counter() - clock,
        "touching": clock - began,
        "cpu_seconds": _cpu_seconds() - cpu,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Largest resident memory of this process; getrusage's figure begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _cpu_seconds() -> float:
    """Processor time of this process and of the `cp`s it started."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def run_side(side: str, folder: Path, python: Path, touched: int) -> dict[str, float]:
    """One side of one round."""
    target = folder / side
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    command = [sys.executable, __file__, "--once", side, str(folder), str(target), str(touched)]
    if side == "mergekit":
        command = [str(python), "-c", PEER, str(folder / "plan.yaml"), str(target), TOUCH, str(touched)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    whole = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "whole": whole - result["touching"]}


def compare(folder: Path, result: Path) -> dict[str, float]:
    """Every element of a result against the fp32 reference, before and after its one rounding."""
    import torch

    from megatron_prism.conversion.safetensors_io import HFFolder

    a, b, merged = HFFolder(folder / "a"), HFFolder(folder / "b"), HFFolder(result)
    different, elements, largest, squares, error_squares = 0, 0, 0.0, 0.0, 0.0
    for name, shape in a.shapes.items():
        for row in range(0, shape[0], 2048):
            rows = (min(2048, shape[0] - row), *shape[1:])
            x, y, found = (torch.empty(rows, dtype=torch.bfloat16) for _ in range(3))
            for source, out in ((a, x), (b, y), (merged, found)):
                source.read(name, row, out)
            exact = WEIGHTS[0] * x.float() + WEIGHTS[1] * y.float()
            different += int((exact.bfloat16().view(torch.int16) != found.view(torch.int16)).sum())
            error = found.double() - exact.double()
            elements += x.numel()
            largest = max(largest, float(error.abs().max()))
            squares += float(exact.double().square().sum())
            error_squares += float(error.square().sum())
    return {
        "elements": elements,
        "different_elements": different,
        "max_abs_error": largest,
        "relative_error": math.sqrt(error_squares / squares),
    }


def benchmark(gigabytes: float, rounds: int, mergekit: Path | None, folder: Path) -> dict[str, Any]:
    """All rounds, then the proof."""
    import torch

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        make_checkpoint("dense", gigabytes, folder / name)
    models = [
        {"model": str(folder / name), "parameters": {"weight": weight}}
        for name, weight in zip(("a", "b"), WEIGHTS, strict=True)
    ]
    plan = {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
        "models": models,
    }
    # JSON is YAML.
    (folder / "plan.yaml").write_text(json.dumps(plan))
    size = sum(file.stat().st_size for file in (folder / "a").glob("*.safetensors"))
    sides = SIDES if mergekit else SIDES[:-1]
    python = mergekit.with_name("python") if mergekit else Path()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    # One round that does not count: the first pass reads cold files.
    for number in range(rounds + 1):
        for side in sides:
            measured = run_side(side, folder, python, int(1.5 * size))
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
        "peak_bytes": {side: max(run["peak_bytes"] for run in found[side]) for side in sides[2:]},
        "against_fp32": {side: compare(folder, folder / side) for side in sides[2:]},
    }


def show(result: dict[str, Any]) -> None:
    medians = result["medians"]
    print(f"linear merge of two checkpoints of {result['bytes'] / GIGABYTE:.2f} GB, medians:")
    for side, median in medians.items():
        peak = result["peak_bytes"].get(side)
        times = "   ".join(
            f"{key.replace('_', ' ')} {median[key]:7.2f}" for key in ("seconds", "cpu_seconds", "whole")
        )
        print(f"  {side:9} {times}" + (f"   peak {peak / 2**20:,.0f} MiB" if peak else ""))
    ours = medians["prism"]
    for side in ("cp", "cp-both"):
        print(f"  prism takes {ours['seconds'] / medians[side]['seconds']:.2f}x the time of {side}")
    if "mergekit" in medians:
        peer = medians["mergekit"]
        print(
            f"  prism is {peer['seconds'] / ours['seconds']:.1f}x as fast as mergekit after the imports, "
            f"{peer['whole'] / ours['whole']:.1f}x as a whole process"
        )
    for side, error in result["against_fp32"].items():
        print(
            f"  {side:9} {error['different_elements']:,} of {error['elements']:,} elements are not the rounded fp32 "
            f"reference; error against the unrounded one: relative {error['relative_error']:.2e}, "
            f"largest {error['max_abs_error']:.2e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="path of mergekit-yaml; without it only ours and cp")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        side, folder, target, touched = arguments.once
        print(json.dumps(merge_once(side, Path(folder), Path(target), int(touched))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        result = benchmark(arguments.gigabytes, arguments.rounds, arguments.mergekit, Path(root))
    show(result)
    settings = header(gigabytes=arguments.gigabytes, rounds=arguments.rounds)
    write(arguments.out, {**settings, "results": result})


if __name__ == "__main__":
    main()
