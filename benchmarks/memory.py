"""Question: what does a layer of each published model keep for backward, and does every recipe's layout fit 80 GB?

    python benchmarks/memory.py --json result.json

Part 1 runs layers of the published sizes (bf16, torch backend, on the CPU, with weights that are not initialised) and
counts the bytes that are still held after the forward pass: of three layers minus of two, per token. The arithmetic of
planning/memory.py stands next to it. Part 2 is that arithmetic for the stages of every recipe.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measure
import torch
from rich.console import Console
from rich.table import Table

from megatron_prism.data.mixture import Mixture
from megatron_prism.models.architecture import ATTENTION, MLP, RECOMPUTE, Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.families import FAMILIES, architecture_from_config, published_config
from megatron_prism.models.layers import mamba_scan
from megatron_prism.planning import activations
from megatron_prism.planning.activations import kept_per_token
from megatron_prism.planning.memory import GB, Memory
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.held_memory import HeldMemory
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.rl.memory import reinforcement_memory
from megatron_prism.rl.stage import Reinforce
from megatron_prism.study.registry import list_recipes, load_recipe
from megatron_prism.training.memory import stage_memory
from megatron_prism.training.stage import Train

# The scan keeps a state for each piece of a sequence, so the row has several pieces.
TOKENS, PIECE = 256, 64
UNSHOWN = ("update", "communication", "fixed")


def held_bytes(architecture: Architecture, recompute: str) -> int:
    """Bytes held after the forward pass of all layers."""
    model = build_model(architecture, torch.bfloat16, backend="torch", recompute=recompute, initialize=False)
    model = model.bfloat16().train()
    hidden = torch.zeros(TOKENS, 1, architecture.hidden_size, dtype=torch.bfloat16).requires_grad_()
    angles = model.rotary_pos_emb(TOKENS) if architecture.position_embedding == "rope" else None
    with HeldMemory() as held:
        output = model.decoder(hidden_states=hidden, attention_mask=None, rotary_pos_emb=angles)
    assert output is not None
    return held.bytes()


def layers(name: str) -> Iterator[dict[str, Any]]:
    """Measured and computed bytes of every kind of layer of a model."""
    published = architecture_from_config(published_config(name))
    for kind in dict.fromkeys(published.hybrid_pattern or "L"):
        two, three = (
            replace(
                published,
                num_layers=count,
                vocab_size=64,
                hybrid_pattern=kind * count if published.is_hybrid else None,
            )
            for count in (2, 3)
        )
        for recompute in RECOMPUTE:
            measured = (held_bytes(three, recompute) - held_bytes(two, recompute)) / TOKENS
            dense = ATTENTION if recompute == "full" else ATTENTION + MLP
            work = Workload(TOKENS, recompute=recompute)
            computed = sum(
                kept_per_token(published, each, ParallelConfig(), work)
                for each in (kind if published.is_hybrid else dense)
            )
            yield {
                "model": name,
                "layer": kind if published.is_hybrid else "attention and MLP",
                "recompute": recompute,
                "measured_bytes_per_token": measured,
                "computed_bytes_per_token": computed,
                "measured_per_hidden": measured / published.hidden_size,
            }


def stages(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The memory of every training stage of a recipe."""
    values = {"checkpoint": str(folder), "data": str(folder), "prompts": str(folder)}
    graph = load_recipe(name).build(values | {"long_context": True, "rl": True})
    seen: set[str] = set()
    for stage_name, node in graph.nodes.items():
        stage = node.stage
        found: Memory
        if isinstance(stage, Train):
            found, length = stage_memory(stage), stage.batch.sequence_length
        elif isinstance(stage, Reinforce):
            found, length = reinforcement_memory(stage), stage.context_length
        else:
            continue
        key = f"{found} {length}"
        if key in seen:
            continue
        seen.add(key)
        sizes = asdict(stage.parallel)
        yield {
            "recipe": name,
            "stage": stage_name,
            "tokens": length,
            "gpus": stage.parallel.world_size,
            "recompute": stage.recompute,
            "parallel": {key: value for key, value in sizes.items() if value not in (1, None, False)},
            "gigabytes": {key: round(value / GB, 1) for key, value in asdict(found).items()},
            "total_gigabytes": round(found.total / GB, 1),
        }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", help="published names; all if left out")
    arguments = parser.parse_args()
    mamba_scan.SEGMENT = activations.SCAN_TOKENS = PIECE
    names = arguments.models or [name for family in FAMILIES.values() for name in family.published]
    console = Console(width=140)
    kept = Table(
        "model", "layer", "recompute", "bytes/token", "computed", "x hidden", title="kept for backward"
    )
    rows = []
    with session(ParallelConfig(), 1):
        for name in names:
            for row in layers(name):
                rows.append(row)
                numbers = row["measured_bytes_per_token"], row["computed_bytes_per_token"]
                kept.add_row(
                    name.rpartition("/")[2],
                    row["layer"],
                    row["recompute"],
                    *(f"{number:,.0f}" for number in numbers),
                    f"{row['measured_per_hidden']:.1f}",
                )
    console.print(kept)
    activations.SCAN_TOKENS = 2048
    planned = []
    parts = Table(
        *("recipe", "stage", "tokens", "GPUs", "recompute", "weights", "gradients", "optimizer", "reference"),
        *("activations", "working", "loss", "cache", "total GB"),
        title="one GPU",
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for source in Mixture.load("mcs").weights | Mixture.load("long-context").weights:
            (folder / source).mkdir()
        for name in list_recipes():
            if name == "shoebox":
                continue
            for row in stages(name, folder):
                planned.append(row)
                sizes = [str(value) for key, value in row["gigabytes"].items() if key not in UNSHOWN]
                facts = (str(row[key]) for key in ("recipe", "stage", "tokens", "gpus", "recompute"))
                parts.add_row(*facts, *sizes, str(row["total_gigabytes"]))
    console.print(parts)
    measure.write(arguments, {"layers": rows, "stages": planned})


if __name__ == "__main__":
    main()
