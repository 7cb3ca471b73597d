"""Worker of test_rl_layouts.py: three steps of reinforcement learning under each layout of this world size."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from parallel_runs import layout, write_results
from tiny_rl import MODELS, artifact, tiny_run

from megatron_prism.models.layers import decode_cache
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.training.kernels import KernelSettings

# Eight answers a step for five slots, so that a slot is filled again in every step.
SHORT = {
    "loop": LoopSettings(prompts_per_step=4, samples_per_prompt=2, reference_alpha=0.5, reference_interval=2),
    "max_new_tokens": 10,
}
# Layout and changes of the run; texts are packed unless PADDED, with a last micro-batch that is not full.
PADDED = {"packing": False, "micro_batch_size": 3}
LAYOUTS = {
    1: {"one": (layout(), {}), "padded": (layout(), PADDED), "recomputed": (layout(), {"recompute": "full"})},
    2: {
        "tp2": (layout(tp=2), {}),
        "tp2sp": (layout(tp=2, sp=True), {}),
        "pp2": (layout(pp=2, first=1), {"recompute": "full"}),
        "pp2vp2": (layout(pp=2, vp=2), {}),
        "cp2": (layout(cp=2), {}),
        "dp2": (layout(dp=2), {"kernels": KernelSettings(overlap_grad_reduce=True, bucket_size=1000)}),
    },
    4: {"tp2pp2": (layout(tp=2, pp=2), {}), "tp2sp-cp2": (layout(tp=2, cp=2, sp=True), PADDED)},
}


def skipped(kind: str, name: str) -> bool:
    return kind == "hybrid" and "vp" in name


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    found = {}
    for kind in MODELS:
        inputs = {name: artifact(folder / kind / name) for name in ("model", "tokenizer", "prompts")}
        for name, (parallel, changes) in LAYOUTS[world].items():
            if skipped(kind, name):
                continue
            out = folder / f"{kind}-{name}"
            out.mkdir(exist_ok=True)
            tiny_run(kind, parallel=parallel, **SHORT, **changes).run(inputs, out)
            found[f"{kind}-{name}"] = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    if world == 2:
        # Negative control: a sampler that computes every token at position 0.
        honest = decode_cache.Prefill.of

        def shifted(*arguments: object) -> object:
            made = honest(*arguments)
            return replace(made, positions=made.positions * 0)

        decode_cache.Prefill.of = shifted
        inputs = {name: artifact(folder / "dense" / name) for name in ("model", "tokenizer", "prompts")}
        (folder / "wrong").mkdir(exist_ok=True)
        try:
            tiny_run("dense", parallel=layout(tp=2), **SHORT).run(inputs, folder / "wrong")
        except Exception as problem:
            found["wrong"] = f"{type(problem).__name__}: {problem}"
    write_results(folder, found)
