"""Question: how long do import and export of a checkpoint take, compared with `cp` of the same bytes on the same disk?

    python benchmarks/convert.py --gigabytes 2 --rounds 5 --out results.json

The sides (`cp`, import, export) alternate. Each measurement is a separate process, whose clock starts after its imports
and a tiny conversion; its peak resident memory is read at the end. Before the clock starts, old outputs are removed,
disk writes are flushed, and as much memory as the side will fill is touched and freed. Touching matters in a virtual
machine: the host takes free memory back after seconds, and the first process that fills it again, even `cp`, is four
times as slow. The last rows extrapolate to the published models by size alone.
"""

from __future__ import annotations

import argparse
import dataclasses
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

import measure

GIGABYTE = 10**9
KINDS = {"dense": "ibm-granite/granite-3.3-8b-base", "hybrid": "ibm-granite/granite-4.0-h-micro-base"}
SIDES = ("cp", "import", "export")
TOUCH = "import sys; memory = bytearray(int(sys.argv[1])); memory[::4096] = bytes([1]) * len(memory[::4096])"


def synthetic_architecture(kind: str, gigabytes: float) -> Any:
    """The published model of this kind, with as many layers as the size in bf16 allows."""
    from megatron_prism.models.families import architecture_from_config, parameter_count, published_config

    whole = architecture_from_config(published_config(KINDS[kind]))
    pattern = whole.hybrid_pattern
    step = 20 if pattern else 1
    for layers in range(step, whole.num_layers + 1, step):
        cut = dataclasses.replace(
            whole, num_layers=layers, hybrid_pattern=pattern[:layers] if pattern else None
        )
        if 2 * parameter_count(cut) >= 0.95 * gigabytes * GIGABYTE:
            break
    return cut


def make_checkpoint(kind: str, gigabytes: float, folder: Path) -> None:
    """A Hugging Face folder of random bf16 weights. Its two tokenizer files are empty objects that are only copied."""
    import torch

    from megatron_prism.conversion.hf_folder.writer import FolderWriter
    from megatron_prism.models.families import hf_config, hf_shapes

    folder.mkdir(parents=True)
    architecture = synthetic_architecture(kind, gigabytes)
    shapes = hf_shapes(architecture)
    with FolderWriter(folder, {name: (torch.bfloat16, shape) for name, shape in shapes.items()}) as writer:
        for name, shape in shapes.items():
            writer.write(name, torch.randn(shape, dtype=torch.bfloat16))
    (folder / "config.json").write_text(json.dumps({**hf_config(architecture), "dtype": "bfloat16"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")


def largest_group(folder: Path) -> int:
    """Bytes of the largest set of Hugging Face tensors that make one Megatron tensor."""
    from megatron_prism.conversion.weights import HFWeights
    from megatron_prism.models.families import parameter_map

    weights = HFWeights(folder)
    return max(
        2 * math.prod(rule.megatron_shape(weights.architecture))
        for rule in parameter_map(weights.architecture)
    )


def resident_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def convert_once(side: str, source: Path, target: Path) -> dict[str, float]:
    """Time one conversion (or copy) in this process: seconds, and peak resident memory above that after the imports."""
    from megatron_prism.conversion.export_hf import export_checkpoint
    from megatron_prism.conversion.import_hf import import_checkpoint
    from megatron_prism.conversion.weights import MegatronWeights
    from megatron_prism.platform.hardware import peak_memory_bytes

    # Modules that the first save loads lazily must not count as memory or time of the conversion.
    warm = target.with_name("warm")
    shutil.rmtree(warm, ignore_errors=True)
    make_tiny_round_trip(warm)
    shutil.rmtree(warm)
    target.mkdir()
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    subprocess.run([sys.executable, "-c", TOUCH, str(int(1.5 * size))], check=True)
    before = resident_bytes()
    clock = time.perf_counter()
    if side == "cp":
        subprocess.run(["cp", *(str(file) for file in source.glob("*.safetensors")), str(target)], check=True)
    elif side == "import":
        import_checkpoint(source, target)
    else:
        export_checkpoint(MegatronWeights(source), target)
    seconds = time.perf_counter() - clock
    return {"seconds": seconds, "peak_bytes": max(0, peak_memory_bytes() - before)}


def make_tiny_round_trip(folder: Path) -> None:
    """Import and export of a checkpoint of a few kilobytes."""
    import torch

    from megatron_prism.conversion.export_hf import export_checkpoint
    from megatron_prism.conversion.hf_folder.writer import FolderWriter
    from megatron_prism.conversion.import_hf import import_checkpoint
    from megatron_prism.conversion.weights import MegatronWeights
    from megatron_prism.models.architecture import Architecture
    from megatron_prism.models.families import hf_config, hf_shapes

    tiny = Architecture("llama", 8, 8, 1, 8, 2, 2, 4)
    for name in ("hf", "megatron", "back"):
        (folder / name).mkdir(parents=True)
    shapes = hf_shapes(tiny)
    with FolderWriter(
        folder / "hf", {name: (torch.float32, shape) for name, shape in shapes.items()}
    ) as writer:
        for name, shape in shapes.items():
            writer.write(name, torch.zeros(shape))
    (folder / "hf" / "config.json").write_text(json.dumps(hf_config(tiny)))
    import_checkpoint(folder / "hf", folder / "megatron")
    export_checkpoint(MegatronWeights(folder / "megatron"), folder / "back")


def run_side(side: str, folder: Path) -> dict[str, float]:
    """One side of one round."""
    hf, megatron = folder / "hf", folder / "megatron"
    target = {"cp": folder / "copy", "import": megatron, "export": folder / "back"}[side]
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    source = megatron if side == "export" else hf
    command = [sys.executable, __file__, "--once", side, str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def benchmark(kind: str, gigabytes: float, rounds: int, root: Path) -> dict[str, Any]:
    """All rounds of one kind of model."""
    from megatron_prism.conversion.hf_folder.reader import HFFolder

    folder = root / kind
    make_checkpoint(kind, gigabytes, folder / "hf")
    size = sum(stored.nbytes for stored in HFFolder(folder / "hf").stored.values())
    # One round that does not count: the first pass reads cold files.
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side in SIDES:
            measured = run_side(side, folder)
            if number:
                found[side].append(measured)
    group = largest_group(folder / "hf")
    seconds = {side: statistics.median(each["seconds"] for each in runs) for side, runs in found.items()}
    result = {
        "model": KINDS[kind],
        "bytes": size,
        "largest_group_bytes": group,
        "seconds": {side: [round(each["seconds"], 3) for each in runs] for side, runs in found.items()},
        "median_seconds": seconds,
        "times_cp": {side: seconds[side] / seconds["cp"] for side in SIDES[1:]},
        "peak_over_largest_group": {
            side: max(each["peak_bytes"] for each in found[side]) / group for side in SIDES[1:]
        },
        "gigabytes_per_second": {side: size / GIGABYTE / seconds[side] for side in SIDES},
    }
    shutil.rmtree(folder)
    return result


def extrapolated(results: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Published model, GB in bf16, and seconds to import and export it at the measured speed of its kind."""
    from megatron_prism.models.families import FAMILIES, architecture_from_config, parameter_count

    rows = []
    for family in FAMILIES.values():
        for name, config in family.published.items():
            architecture = architecture_from_config(config)
            speed = results["hybrid" if architecture.is_hybrid else "dense"]["gigabytes_per_second"]
            size = 2 * parameter_count(architecture) / GIGABYTE
            rows.append((name, size, size / speed["import"], size / speed["export"]))
    return rows


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder for the temporary files; default: the system's")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        side, source, target = arguments.once
        print(json.dumps(convert_once(side, Path(source), Path(target))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        results = {kind: benchmark(kind, arguments.gigabytes, arguments.rounds, Path(root)) for kind in KINDS}
    for kind, result in results.items():
        print(f"{kind}: {result['bytes'] / GIGABYTE:.2f} GB, cp {result['median_seconds']['cp']:.2f} s")
        for side in SIDES[1:]:
            print(
                f"  {side:6} {result['median_seconds'][side]:6.2f} s  {result['times_cp'][side]:.2f}x cp  "
                f"peak {result['peak_over_largest_group'][side]:.2f}x the largest group "
                f"({result['largest_group_bytes'] / 2**20:.0f} MiB)"
            )
    print("extrapolated by size (not measured):")
    for name, size, reading, writing in extrapolated(results):
        print(f"  {name:40} {size:6.1f} GB  import {reading:6.1f} s  export {writing:6.1f} s")
    measure.write(arguments, {"results": results})


if __name__ == "__main__":
    main()
