"""Question: how long does the deep dry run of a cluster's jobs take, how much memory, and does the planner agree?

    python benchmarks/dry_run.py --json result.json

One command per model, as a user would type it: mid-training on 128 GPUs (8,192 tokens, 128 sequences) and the extension
to 131,072 tokens on 144 GPUs (context parallelism 4, 36 replicas, a batch of 36). Seconds are those of the whole
command, with all imports; the memory is its largest resident size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.table import Table

# The layout of mid-training: tensor, pipeline, context and data parallelism.
LAYOUTS = {
    "granite-3.3-8b": (2, 1, 1, 64),
    "granite-4.0-micro": (1, 1, 1, 128),
    "granite-4.0-h-micro": (1, 1, 2, 64),
    "llama-3.1-8b": (2, 2, 1, 32),
    "mistral-7b-v0.1": (2, 1, 1, 64),
    "mistral-small-24b": (4, 2, 1, 16),
    "nemotron-h-8b": (2, 1, 1, 64),
}
NAMES = tuple(f"{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context", "data"))
EXTENSION = (1, 1, 4, 36)
BATCH = 36


def command(model: str) -> list[str]:
    """What a user types."""
    settings = ["long_context=true", f"extend.batch.global_batch_size={BATCH}", "extend.recompute=full"]
    settings += ["midtrain.recompute=none", "midtrain.batch.micro_batch_size=1"]
    for stage, sizes in (("midtrain", LAYOUTS[model]), ("extend", EXTENSION)):
        settings += [f"{stage}.parallel.{name}={size}" for name, size in zip(NAMES, sizes, strict=True)]
        settings.append(f"{stage}.parallel.sequence_parallel={str(sizes[0] > 1).lower()}")
        # What the recipe's own layout may have.
        settings += [
            f"{stage}.parallel.virtual_pipeline_model_parallel_size=null",
            f"{stage}.parallel.split=even",
        ]
    return ["run", f"{model}:extend", *settings, "--dry-run=deep"]


def measured(model: str) -> dict[str, Any]:
    """Seconds and memory of the command, and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        arguments = [sys.executable, "-m", "megatron_prism", *command(model), "--json", str(found)]
        began = time.perf_counter()
        with (Path(folder) / "output").open("w") as output:
            process = subprocess.Popen(arguments, stdout=output, stderr=output)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit((Path(folder) / "output").read_text())
        stages = json.loads(found.read_text())["stages"]
    ranks = [
        {"stage": stage["stage"], "layout": sizes} | rank
        for stage in stages
        for rank in stage["ranks"]
        for sizes in [LAYOUTS[model] if stage["stage"] == "midtrain" else EXTENSION]
    ]
    return {
        "model": model,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "memory_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "ranks": ranks,
    }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    arguments = parser.parse_args()
    times = Table("model", "command s", "CPU s", "memory GB", "mid-training s", "extension s")
    parts = Table(
        "model", "stage", "TP PP CP DP", "rank", "weights", "gradients", "optimizer", "activations", "working"
    )
    rows = []
    for model in arguments.models:
        row = measured(model)
        rows.append(row)
        seconds = {
            stage: sum(rank["seconds"] for rank in row["ranks"] if rank["stage"] == stage)
            for stage in ("midtrain", "extend")
        }
        numbers = (row["seconds"], row["cpu_seconds"], row["memory_gb"])
        times.add_row(model, *map(str, numbers), *(f"{value:.1f}" for value in seconds.values()))
        for rank in row["ranks"]:
            counted, planned = rank["counted"], rank["planned"]
            cells = (
                f"{counted[name] / 1e9:.2f} ({counted[name] / planned[name]:.2f})"
                for name in ("weights", "gradients", "optimizer", "activations", "working")
            )
            layout = " ".join(map(str, rank["layout"]))
            parts.add_row(model, rank["stage"], layout, str(rank["rank"]), *cells)
    console = Console(width=150)
    console.print(times)
    console.print(parts)
    measure.write(arguments, {"models": rows})


if __name__ == "__main__":
    main()
