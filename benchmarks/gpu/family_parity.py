"""Piece 1: tiny models of all seven families give the numbers of the CPU, resume, and go back to transformers.

The CPU's numbers come from a process that sees no GPU. Both processes train the same weights on the same samples.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from recorder import Recorder

from megatron_prism.conversion.export_hf import export_running
from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.models.families import FAMILIES
from megatron_prism.platform.hardware import device, has_gpu
from megatron_prism.platform.process_groups import ParallelConfig, cuda_requests_on_cpu, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

LENGTH, BATCH, VOCABULARY, STEPS = 64, 4, 61, 3
REFERENCE = "cpu_reference.pt"
# Largest accepted relative differences from the CPU: loss at any step, logits (norm), worst gradient (norm).
BOUNDS = {"fp32": (1e-5, 1e-4, 1e-3), "bf16": (2e-2, 5e-2, 2e-1)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Samples:
    """Fixed random sequences."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(VOCABULARY, (LENGTH + 1,), generator=torch.Generator().manual_seed(index))
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(LENGTH),
            "position_ids": torch.arange(LENGTH),
        }


def _trainer(hf: Path, dtype: str) -> Trainer:
    architecture = HFWeights(hf).architecture
    trainer = Trainer(
        architecture,
        ParallelConfig(),
        BatchConfig(LENGTH, micro_batch_size=2, global_batch_size=BATCH),
        OptimizerSettings(eps=1e-8),
        dtype=DTYPES[dtype],
        backend="torch",
    )
    load_hf_weights(trainer.models, architecture, hf)
    trainer.optimizer.reload_model_params()
    return trainer


def logits_of(trainer: Trainer) -> torch.Tensor:
    """Logits of the first sample, `[1, seq, vocab]`, on the CPU in fp32."""
    model, sample = unwrap(trainer.models[0]).eval(), Samples()[0]
    tokens, positions = (sample[key][None].to(device()) for key in ("tokens", "position_ids"))
    with torch.no_grad(), cuda_requests_on_cpu():
        found: torch.Tensor = model(tokens, positions, None)
    return found.float().cpu()[..., :VOCABULARY]


def numbers(hf: Path, dtype: str, scratch: Path | None = None) -> dict[str, Any]:
    """Logits, gradients and losses of a model; with `scratch`, also those of a resumed run and of an export."""
    with session(seed=5):
        trainer = _trainer(hf, dtype)
        found: dict[str, Any] = {"logits": logits_of(trainer)}
        trainer.step(Samples(), 0, 0.0)
        found["gradients"] = {
            name: parameter.main_grad.float().cpu().clone()
            for name, parameter in unwrap(trainer.models[0]).named_parameters()
        }
        trainer = _trainer(hf, dtype)
        found["losses"] = [trainer.step(Samples(), i * BATCH, 1e-3)[0] for i in range(STEPS - 1)]
        if scratch is not None:
            save_checkpoint(
                scratch / "checkpoint", trainer.models, trainer.optimizer, TrainingState(STEPS - 1)
            )
        found["losses"].append(trainer.step(Samples(), (STEPS - 1) * BATCH, 1e-3)[0])
        if scratch is not None:
            found |= _resumed(hf, dtype, scratch) | _exported(hf, trainer, scratch / "export")
    return found


def _resumed(hf: Path, dtype: str, scratch: Path) -> dict[str, Any]:
    trainer = _trainer(hf, dtype)
    load_checkpoint(scratch / "checkpoint", trainer.models, trainer.optimizer)
    return {"resumed": trainer.step(Samples(), (STEPS - 1) * BATCH, 1e-3)[0]}


def _exported(hf: Path, trainer: Trainer, out: Path) -> dict[str, Any]:
    """How far transformers' logits of the exported model are from ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    out.mkdir()
    export_running(trainer.models, HFWeights(hf).architecture, out, files=hf)
    config = AutoConfig.from_pretrained(out)
    for key, value in FAMILIES[config.model_type].for_comparison.items():
        setattr(config, key, value)
    peer = AutoModelForCausalLM.from_pretrained(
        out, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = peer.eval()(input_ids=Samples()[0]["tokens"][None], use_cache=False).logits.float()
    return {"exported": relative(logits_of(trainer), theirs)}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def make_folders(out: Path, families: list[str]) -> dict[str, Path]:
    """Random checkpoints made by transformers, once."""
    from tiny_models import make_checkpoint

    folders = {}
    for name in families:
        folders[name] = out / "families" / name
        if not folders[name].exists():
            make_checkpoint(name, folders[name])
    return folders


def write_reference(out: Path, families: list[str]) -> None:
    """The numbers of this process, which must not see a GPU, for `piece_1` of another one."""
    if has_gpu():
        raise SystemExit("the reference must be computed without a GPU: set CUDA_VISIBLE_DEVICES to nothing")
    folders = make_folders(out, families)
    found = {(name, dtype): numbers(folder, dtype) for name, folder in folders.items() for dtype in DTYPES}
    torch.save(found, out / REFERENCE)


def reference(out: Path, families: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The CPU's numbers: those in `out`, or from a new process."""
    if not (out / REFERENCE).exists():
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--reference", "--out", str(out)]
        without_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([*command, "--families", *families], env=without_gpu, check=True, timeout=300)
    found: dict[tuple[str, str], dict[str, Any]] = torch.load(out / REFERENCE, weights_only=True)
    return found


def piece_1(record: Recorder, out: Path, families: list[str]) -> None:
    """Every family and precision against the CPU."""
    cpu: dict[Any, Any] = {}
    record.measure("reference on the CPU", lambda: cpu.update(reference(out, families)) or "made", 300)
    for name, folder in make_folders(out, families).items():
        for dtype in DTYPES:

            def compared(name: str = name, folder: Path = folder, dtype: str = dtype) -> dict[str, Any]:
                with tempfile.TemporaryDirectory() as scratch:
                    found = numbers(folder, dtype, Path(scratch))
                return against(found, cpu[name, dtype], dtype)

            record.measure(f"{name}, {dtype}", compared, 60)


def against(found: dict[str, Any], expected: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The differences of a run from the CPU's, and whether all are within `BOUNDS`."""
    gaps = [abs(mine / theirs - 1) for mine, theirs in zip(found["losses"], expected["losses"], strict=True)]
    # A gradient that is nearly zero everywhere has no meaningful relative difference.
    largest = max(float(gradient.norm()) for gradient in expected["gradients"].values())
    gradients = {
        name: float(
            (found["gradients"][name] - gradient).norm() / max(float(gradient.norm()), 1e-3 * largest)
        )
        for name, gradient in expected["gradients"].items()
    }
    worst = max(gradients, key=gradients.__getitem__)
    result = {
        "loss": max(gaps),
        "logits": relative(found["logits"], expected["logits"]),
        "gradient": gradients[worst],
        "worst_gradient": worst,
        "resume": abs(found["resumed"] / found["losses"][-1] - 1),
        "export": found["exported"],
    }
    loss, logits, gradient = BOUNDS[dtype]
    result["passed"] = (
        result["loss"] <= loss
        and result["logits"] <= logits
        and result["gradient"] <= gradient
        and result["resume"] <= loss
        and result["export"] <= logits
    )
    return result
