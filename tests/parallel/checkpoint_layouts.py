"""Worker of test_checkpoint_layouts.py: checkpoints of one layout loaded in another, compared number by number."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parallel_runs import Motifs, layout, write_results
from training_layouts import BATCH, LENGTH, MODELS, trainer

from megatron_prism.models.checkpoint_io import DP_RESHARDABLE, FULLY_RESHARDABLE
from megatron_prism.platform.process_groups import session
from megatron_prism.training import checkpoint as module
from megatron_prism.training import optimizer_buckets
from megatron_prism.training.checkpoint import Contents, TrainingState, load_checkpoint, save_contents
from megatron_prism.training.checkpoint_saver import CheckpointSaver
from megatron_prism.training.run_folder import RunFolder
from megatron_prism.training.saved_state import read_state

LAYOUTS = {
    "one": layout(),
    "dp2": layout(dp=2),
    "tp2": layout(tp=2, sp=True),
    "pp2": layout(pp=2),
    "cp2": layout(cp=2),
    "pp1+3": layout(pp=2, first=1),
}
# Model, layout of the checkpoint, and the layouts that load it, by their number of ranks.
CHANGES = (
    ("dense", "dp2", {2: ["dp2", "cp2", "tp2"], 1: ["one"]}),
    ("dense", "tp2", {2: ["dp2", "pp2"], 1: ["one"]}),
    ("dense", "pp1+3", {2: ["pp2"], 1: []}),
    ("hybrid", "pp2", {2: ["tp2", "dp2", "pp1+3"], 1: ["one"]}),
    ("hybrid", "tp2", {2: ["pp2"], 1: ["one"]}),
)


def save(folder: Path, run: Any, kind: str, step: int = 2) -> None:
    contents = Contents(run.models, run.optimizer, TrainingState(step, step * BATCH), optimizer_format=kind)
    save_contents(CheckpointSaver(), folder, contents)


def numbers(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in the format that does not depend on the layout."""
    from megatron.core.dist_checkpointing.serialization import load_plain_tensors

    loaded = load_plain_tensors(str(folder))
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def differences(first: Path, second: Path) -> list[str]:
    """The names of the tensors in which two checkpoints differ; all of them if they hold different ones."""
    mine, theirs = numbers(first), numbers(second)
    assert any("exp_avg_sq" in name for name in mine)
    if mine.keys() != theirs.keys():
        return sorted(mine.keys() ^ theirs.keys())
    return [name for name in mine if not torch.equal(mine[name], theirs[name])]


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    results: dict[str, Any] = {}
    for model, source, targets in CHANGES:
        saved, whole = folder / f"{model}-{source}", folder / f"{model}-{source}-whole"
        if world == 2:
            with session(LAYOUTS[source], seed=5):
                run = trainer(MODELS[model], LAYOUTS[source])
                for step in range(2):
                    run.step(Motifs(LENGTH), step * BATCH, 1e-2)
                save(saved, run, DP_RESHARDABLE)
                save(whole, run, FULLY_RESHARDABLE)
        if world == 2 and dist.get_rank() == 0:
            results[f"{model}-{source}-format"] = read_state(saved).record.optimizer
        for target in targets[world]:
            again = folder / f"{model}-{source}-{target}"
            with session(LAYOUTS[target], seed=6):
                run = trainer(MODELS[model], LAYOUTS[target])
                run.step(Motifs(LENGTH), 40, 1e-2)
                state = load_checkpoint(saved, run.models, run.optimizer)
                save(again, run, FULLY_RESHARDABLE, state.step)
                results[f"{model}-{source}-{target}"] = [state.step, differences(whole, again)]
    results |= negative_control(folder) if world == 1 else damage(folder)
    write_results(folder, results)


def damage(folder: Path) -> dict[str, Any]:
    """The step from which each rank goes on when a file that only rank 1 reads is unreadable."""
    out = folder / "damage"
    with session(LAYOUTS["dp2"], seed=6):
        run = RunFolder(out, trainer(MODELS["dense"], LAYOUTS["dp2"]), steps=9)
        state = TrainingState()
        for step in range(2):
            run.trainer.step(Motifs(LENGTH), step * BATCH, 1e-2)
            state.step += 1
            run.save_step(state)
        files = list((out / "resume" / "step_0000002").glob("__1_*"))
        if dist.get_rank() == 0:
            for file in files:
                file.write_bytes(bytes(file.stat().st_size))
        dist.barrier()
        again = RunFolder(out, trainer(MODELS["dense"], LAYOUTS["dp2"]), steps=9).resume()
        steps: list[Any] = [None, None]
        dist.all_gather_object(steps, again.step if again else 0)
        sizes = [
            sum(path.stat().st_size for path in (out / "resume" / "step_0000001").glob(f"__{rank}_*"))
            for rank in (0, 1)
        ]
        return {"damage": {"files": len(files), "steps": steps, "sizes": sizes}}


def negative_control(folder: Path) -> dict[str, Any]:
    """The pieces of the index one number too far: the check must see it."""
    honest = optimizer_buckets.read_index

    def shifted(saved: Path) -> Any:
        groups, pieces = honest(saved)
        return groups, [replace(piece, start=max(0, piece.start - 1)) for piece in pieces]

    from megatron_prism.training import optimizer_reshard

    optimizer_reshard.read_index = shifted
    try:
        with session(LAYOUTS["one"], seed=6):
            run = trainer(MODELS["dense"], LAYOUTS["one"])
            module.load_checkpoint(folder / "dense-tp2", run.models, run.optimizer)
            save(folder / "shifted", run, FULLY_RESHARDABLE)
            return {"shifted": len(differences(folder / "dense-tp2-whole", folder / "shifted"))}
    finally:
        optimizer_reshard.read_index = honest
