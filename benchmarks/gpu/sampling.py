"""Piece 4: the speed of sampling, and one step of reinforcement learning."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from plain_tokens import PlainTokens
from recorder import Recorder, seconds_of

from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.platform.hardware import device, peak_memory_bytes
from megatron_prism.platform.process_groups import session

PROMPT = 128


def sampling_speed(architecture: Architecture, batch: int, prompt: int, answer: int) -> dict[str, Any]:
    """Tokens per second of answers that are all equally long, with `batch` sequences at a time."""
    tokens = torch.randint(
        architecture.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)
    )
    prompts = [" ".join(map(str, row)) for row in tokens.tolist()]
    with session(seed=1):
        model = build_model(architecture, torch.bfloat16, backend="torch").to(device()).bfloat16()
        engine = MegatronEngine(model, PlainTokens(architecture.vocab_size), batch)  # type: ignore[arg-type]
        params = SamplingParams(max_new_tokens=answer)
        seconds = seconds_of(lambda: engine.generate(prompts, params), repeats=1)
        memory = peak_memory_bytes() / 2**30
    return {"tokens_per_second": round(batch * answer / seconds, 1), "peak_memory_gib": round(memory, 2)}


def one_step_of_rl(kind: str) -> dict[str, Any]:
    """One update of the suite's tiny model, from prompts to the artifact, with its real graders."""
    from tiny_rl import make_inputs, tiny_run

    with tempfile.TemporaryDirectory() as folder:
        inputs, out = make_inputs(Path(folder) / "inputs", kind), Path(folder) / "out"
        out.mkdir()
        tiny_run(kind, steps=1).run(inputs, out)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if "loss" in line)
    return {key: step[key] for key in ("loss", "grad_norm", "gap") if key in step}


def piece_4(record: Recorder, models: dict[str, Architecture], tiny: bool) -> None:
    """Sampling at several batch sizes, and reinforcement learning."""
    prompt, answer = (8, 4) if tiny else (PROMPT, 128)
    for kind, architecture in models.items():
        for batch in (2,) if tiny else (1, 16, 64, 256):
            record.measure(
                f"{kind}, sampling, {batch} at a time",
                lambda a=architecture, b=batch: sampling_speed(a, b, prompt, answer),
                90,
            )
        record.measure(f"{kind}, one step of RL", lambda kind=kind: one_step_of_rl(kind), 90)
