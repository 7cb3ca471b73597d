"""Question: at 32k tokens, does context parallelism give the same gradients as one rank, with less memory per rank?

    python benchmarks/long_context.py --json result.json

For a small dense and a small hybrid model: one training step on one sequence at CP 1, 2 and 4, each in a separate
torchrun with one thread per process. The loss and every parameter's gradient are compared with CP 1 (largest difference
divided by the largest gradient). Memory is the peak resident size during the step minus the size before it. As a
negative control, the CP 2 step runs once more with its chunks in a wrong order.

With `--attention`, the benchmark instead times one rank's part of attention at CP 2, forward and backward: in blocks,
and as one masked call over all keys.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.layers import attention
from megatron_prism.models.layers.blockwise import Blocks, blockwise_attention
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

VOCABULARY = 2048
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "ffn_hidden_size": 384,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "head_dim": 32,
    "initializer_range": 0.1,
}
MODELS = {
    "dense": Architecture(
        "granite", num_layers=2, attention_multiplier=0.1, residual_multiplier=0.5, rope_theta=1e6, **SHAPE
    ),
    "hybrid": Architecture(
        "nemotron_h",
        num_layers=4,
        activation="squared_relu",
        position_embedding="none",
        hybrid_pattern="M*M-",
        mamba_num_heads=8,
        mamba_head_dim=32,
        mamba_state_dim=32,
        mamba_num_groups=4,
        **SHAPE,
    ),
}


class OneSequence:
    """A data set whose samples are all the same random tokens."""

    def __init__(self, length: int) -> None:
        self.tokens = torch.randint(VOCABULARY, (length + 1,), generator=torch.Generator().manual_seed(0))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        length = len(self.tokens) - 1
        return {
            "tokens": self.tokens[:-1],
            "labels": self.tokens[1:],
            "loss_mask": torch.ones(length),
            "position_ids": torch.arange(length),
        }


def reset_peak() -> None:
    """Reset the peak that `measure.memory_bytes("VmHWM")` reads to the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def worker(folder: Path, kind: str, length: int, wrong_order: bool) -> None:
    """One step on this rank; rank 0 writes the loss, the gradients, and every rank's seconds and memory."""
    torch.set_num_threads(1)
    size = int(os.environ["WORLD_SIZE"])
    if wrong_order:
        attention.chunk_positions = lambda n, rank, ranks, dev: torch.arange(
            rank * n, (rank + 1) * n, device=dev
        )
    parallel = ParallelConfig(context_parallel_size=size, use_distributed_optimizer=False)
    # This clipping threshold is too high to change the gradients.
    settings = OptimizerSettings(eps=1e-8, clip_grad=1e9)
    with session(parallel, seed=1):
        trainer = Trainer(MODELS[kind], parallel, BatchConfig(length, 1, 1), settings, dtype=torch.float32)
        data = OneSequence(length)
        dist.barrier()
        before = measure.memory_bytes("VmRSS")
        reset_peak()
        start = time.perf_counter()
        loss, _ = trainer.step(data, 0, 0.0)
        mine = {"seconds": time.perf_counter() - start, "peak_bytes": measure.memory_bytes("VmHWM") - before}
        ranks: list[Any] = [None] * size
        dist.all_gather_object(ranks, mine)
        if dist.get_rank() == 0:
            gradients = {
                name: parameter.main_grad.clone() for name, parameter in trainer.models[0].named_parameters()
            }
            torch.save({"loss": loss, "ranks": ranks, "gradients": gradients}, folder / "step.pt")


def launch(kind: str, size: int, length: int, wrong_order: bool = False) -> dict[str, Any]:
    """A step in `size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"),
            *(__file__, "--worker", folder, "--models", kind, "--length", str(length)),
            *(["--wrong-order"] if wrong_order else []),
        ]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"CP {size} of the {kind} model failed:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = torch.load(Path(folder) / "step.pt", weights_only=True)
        return result


def against(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """The differences of a step's loss and gradients from those of CP 1."""
    gaps = {
        name: float((found["gradients"][name] - gradient).abs().max() / gradient.abs().max())
        for name, gradient in expected["gradients"].items()
    }
    worst = max(gaps, key=gaps.__getitem__)
    return {
        "loss": found["loss"],
        "loss_gap": abs(found["loss"] / expected["loss"] - 1),
        "gradient_gap": gaps[worst],
        "worst_parameter": worst,
        "seconds": max(rank["seconds"] for rank in found["ranks"]),
        "peak_mib_per_rank": [round(rank["peak_bytes"] / 2**20) for rank in found["ranks"]],
    }


def compare(kind: str, length: int, sizes: list[int]) -> dict[str, Any]:
    console = Console(stderr=True)
    rows: dict[str, Any] = {}
    expected = launch(kind, 1, length)
    for size in sizes:
        rows[f"CP {size}"] = against(launch(kind, size, length) if size > 1 else expected, expected)
        console.print(kind, f"CP {size}", rows[f"CP {size}"])
    rows["CP 2, wrong order"] = against(launch(kind, 2, length, wrong_order=True), expected)
    return {"model": kind, "parameters": sum(g.numel() for g in expected["gradients"].values()), "rows": rows}


def time_attention(length: int, rounds: int) -> dict[str, Any]:
    """Seconds of attention on rank 0 at CP 2 (the first and last of four chunks): in blocks, and with one mask."""
    heads, groups, dim = SHAPE["num_attention_heads"], SHAPE["num_query_groups"], SHAPE["head_dim"]
    starts, scale = [0, length * 3 // 4], dim**-0.5
    query = torch.randn(length // 2, 1, heads, dim, device=device(), requires_grad=True)
    key, value = (torch.randn(length, 1, groups, dim, device=device(), requires_grad=True) for _ in range(2))

    def blocks() -> None:
        blockwise_attention(query, key, value, Blocks(starts, scale)).sum().backward()

    def masked() -> None:
        positions = torch.cat([torch.arange(s, s + length // 4, device=device()) for s in starts])
        mask = positions[:, None] >= torch.arange(length, device=device())
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True).sum().backward()

    timings = measure.alternate({"blocks": blocks, "masked": masked}, rounds, calls=2, warmup=1)
    return {
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "ratio": timings["masked"].median / timings["blocks"].median,
    }


def show(results: list[dict[str, Any]], length: int) -> None:
    table = Table(title=f"one step on {length:,} tokens, against CP 1")
    for column in ("model", "layout", "loss", "loss gap", "gradient gap", "peak MiB per rank", "seconds"):
        table.add_column(column, justify="right")
    for result in results:
        for name, row in result["rows"].items():
            table.add_row(
                result["model"],
                name,
                f"{row['loss']:.6f}",
                f"{row['loss_gap']:.1e}",
                f"{row['gradient_gap']:.1e}",
                " ".join(map(str, row["peak_mib_per_rank"])),
                f"{row['seconds']:.0f}",
            )
    Console().print(table)


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--length", type=int, default=32768, help="tokens of the sequence")
    parser.add_argument("--cp", type=int, nargs="+", default=[1, 2, 4], help="context-parallel sizes")
    parser.add_argument("--attention", action="store_true", help="time only one rank's attention")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of --attention")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--wrong-order", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker, *arguments.models, arguments.length, arguments.wrong_order)
    torch.set_num_threads(1)
    if arguments.attention:
        timed = time_attention(arguments.length, arguments.rounds)
        Console().print_json(json.dumps(timed))
        measure.write(arguments, {"attention": timed})
    else:
        results = [compare(kind, arguments.length, arguments.cp) for kind in arguments.models]
        show(results, arguments.length)
        measure.write(arguments, {"results": results})


if __name__ == "__main__":
    main()
