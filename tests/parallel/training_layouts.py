"""Worker of test_parity.py: trains 6 steps under each layout of this world size and writes the losses as JSON."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from parallel_runs import HYBRID, VOCABULARY, Motifs, layout, write_results, wrong_chunk_order

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

STEPS, LENGTH, BATCH = 6, 32, 4
DENSE = Architecture(
    "granite", VOCABULARY, 32, 4, 64, 4, 2, 8, attention_multiplier=0.3, embedding_multiplier=4.0,
    residual_multiplier=0.5, logits_scaling=2.0,
)  # fmt: skip
MODELS = {"dense": DENSE, "hybrid": HYBRID}


LAYOUTS = {
    1: {"one": layout()},
    2: {
        "tp2": layout(tp=2),
        "tp2sp": layout(tp=2, sp=True),
        "pp2": layout(pp=2),
        "pp2vp2": layout(pp=2, vp=2),
        "cp2": layout(cp=2),
        "dp2": layout(dp=2),
    },
    3: {"pp3uneven": layout(pp=3, last=2)},
    4: {"tp2pp2": layout(tp=2, pp=2), "cp2tp2sp": layout(tp=2, cp=2, sp=True)},
}


def trainer(architecture: Architecture, parallel: ParallelConfig) -> Trainer:
    batch = BatchConfig(LENGTH, micro_batch_size=2, global_batch_size=BATCH)
    # What is computed again in the backward pass must not depend on the layout either.
    recompute = "selective" if parallel.world_size == 4 else "none"
    return Trainer(
        architecture,
        parallel,
        batch,
        OptimizerSettings(eps=1e-8),
        dtype=torch.float32,
        recompute=recompute,
    )


def losses(run: Trainer, first: int, steps: int) -> list[float]:
    return [run.step(Motifs(LENGTH), i * BATCH, 1e-2)[0] for i in range(first, steps)]


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    results: dict[str, list[float]] = {}
    for kind, architecture in MODELS.items():
        initial, halfway = folder / f"{kind}-initial", folder / f"{kind}-halfway"
        for name, parallel in LAYOUTS[world].items():
            if parallel.virtual_pipeline_model_parallel_size and architecture.is_hybrid:
                continue
            with session(parallel, seed=5):
                run = trainer(architecture, parallel)
                if world == 1:
                    save_checkpoint(initial, run.models, run.optimizer, TrainingState())
                    results[f"{kind}-{name}"] = losses(run, 0, STEPS // 2)
                    save_checkpoint(halfway, run.models, run.optimizer, TrainingState(STEPS // 2))
                    results[f"{kind}-{name}"] += losses(run, STEPS // 2, STEPS)
                else:
                    load_weights(run.models, initial)
                    run.optimizer.reload_model_params()
                    results[f"{kind}-{name}"] = losses(run, 0, STEPS)
            if name in ("one", "tp2", "pp2", "pp2vp2"):
                with session(parallel, seed=6):
                    resumed = trainer(architecture, parallel)
                    step = load_checkpoint(halfway, resumed.models, resumed.optimizer).step
                    results[f"{kind}-{name}-resumed"] = losses(resumed, step, STEPS)
        if world == 2:
            with wrong_chunk_order(), session(LAYOUTS[2]["cp2"], seed=5):
                run = trainer(architecture, LAYOUTS[2]["cp2"])
                load_weights(run.models, initial)
                run.optimizer.reload_model_params()
                results[f"{kind}-cp2-wrong-order"] = losses(run, 0, STEPS)
    write_results(folder, results)
