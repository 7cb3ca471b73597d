"""Saves and loads a training state of about 2 GB on two data-parallel ranks.

    python benchmarks/checkpoint.py [--layers 8] [--rounds 5] [--folder DIR] [--json FILE]

Measured in alternation, slowest rank, median over the rounds:

write       the same number of bytes from memory, as two files per rank, each flushed to the disk
save        a checkpoint: plan, write, flush, metadata, rename
background  how long training waits for a save in the background, after the first one has made the buffers
load        the checkpoint into a fresh trainer's model and optimizer
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import argument_parser, write

from megatron_prism.platform.process_groups import ParallelConfig, session

RANKS = 2


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(arguments.layers, arguments.rounds, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        environment = os.environ | {
            "WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29511",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, f"--layers={arguments.layers}", f"--rounds={arguments.rounds}"]
        ranks = [
            subprocess.Popen(
                [*command, f"--folder={folder}"],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(RANKS)
        ]
        if any([rank.wait() for rank in ranks]):
            raise SystemExit("a rank failed")
        result = json.loads((folder / "result.json").read_text())
    for name, seconds in result["seconds"].items():
        print(f"{name:12s}{seconds:8.3f} s   {result['gigabytes'] / seconds:6.2f} GB/s")
    print(
        f"save / write {result['save_over_write']:.2f}, background / save {result['background_over_save']:.2f}"
    )
    write(arguments, result)


def run_rank(layers: int, rounds: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    parallel = ParallelConfig(data_parallel_size=RANKS)
    with session(parallel, seed=1):
        seconds, nbytes = measure(layers, rounds, folder, parallel)
        if dist.get_rank() == 0:
            middle = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
            result = {
                "gigabytes": round(nbytes / 1e9, 3),
                "seconds": middle,
                "all_seconds": {
                    name: [round(value, 3) for value in values] for name, values in seconds.items()
                },
                "save_over_write": round(middle["save"] / middle["write"], 3),
                "background_over_save": round(middle["background"] / middle["save"], 3),
            }
            (folder / "result.json").write_text(json.dumps(result))


def measure(
    layers: int, rounds: int, folder: Path, parallel: ParallelConfig
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each operation and the bytes of the checkpoint."""
    import torch.distributed as dist

    from megatron_prism.models.checkpoint_io import DP_RESHARDABLE
    from megatron_prism.training.checkpoint import (
        Contents,
        TrainingState,
        load_checkpoint,
        save_contents,
    )
    from megatron_prism.training.checkpoint_saver import CheckpointSaver

    run = make_trainer(layers, parallel)
    contents = Contents(run.models, run.optimizer, TrainingState(1), optimizer_format=DP_RESHARDABLE)
    foreground, background = CheckpointSaver(), CheckpointSaver(in_background=True)

    def save(saver: Any, name: str) -> None:
        save_contents(saver, folder / name, contents)

    def in_background() -> None:
        save(background, "background")

    save(foreground, "saved")
    save(background, "background")
    background.wait()
    mine = sum(path.stat().st_size for path in (folder / "saved").glob(f"__{dist.get_rank()}_*"))
    total = sum(path.stat().st_size for path in (folder / "saved").rglob("*") if path.is_file())
    content = os.urandom(1 << 20) * (mine >> 21)
    operations: dict[str, Callable[[], None]] = {
        "write": lambda: write_bytes(folder, content),
        "save": lambda: save(foreground, "saved"),
        "background": in_background,
        "load": lambda: load_checkpoint(folder / "saved", run.models, run.optimizer) and None,
    }
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(rounds):
        for name, operation in operations.items():
            shutil.rmtree(folder / f"bytes-{dist.get_rank()}", ignore_errors=True)
            os.sync()
            dist.barrier()
            began = time.perf_counter()
            operation()
            dist.barrier()
            seconds[name].append(time.perf_counter() - began)
            background.wait()
    return seconds, total


def write_bytes(folder: Path, content: bytes) -> None:
    """Write this rank's share as two files, each flushed to the disk."""
    import torch.distributed as dist

    mine = folder / f"bytes-{dist.get_rank()}"
    mine.mkdir()

    def write_file(number: int) -> None:
        with open(mine / str(number), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write_file, range(2)))


def make_trainer(layers: int, parallel: ParallelConfig) -> Any:
    """A trainer whose moments are not zero, because pages of zeros would be read faster."""
    import torch

    from megatron_prism.models.architecture import Architecture
    from megatron_prism.training import adam_state
    from megatron_prism.training.batch import BatchConfig
    from megatron_prism.training.optimizer import OptimizerSettings
    from megatron_prism.training.trainer import Trainer

    architecture = Architecture("granite", 16384, 1024, layers, 2816, 16, 4, 64, max_position_embeddings=128)
    run = Trainer(architecture, parallel, BatchConfig(64, 1, 2), OptimizerSettings(), dtype=torch.float32)
    adam_state.prepare_state(run.optimizer)
    for part in run.optimizer.chained_optimizers:
        for state in part.optimizer.state.values():
            state["exp_avg"].normal_()
            state["exp_avg_sq"].normal_()
    return run


if __name__ == "__main__":
    main()
