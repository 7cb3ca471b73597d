"""Worker of test_long_context.py: four processes take one step on one sequence at CP 1, 2 and 4.

The rest of the four processes is data parallel, and every data-parallel rank reads the same sequence, so mean loss and
mean gradients are those of one sequence in every layout. Rank 0 writes them, with the largest tensor of each layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parallel_runs import sample, wrong_chunk_order
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.layers import blockwise
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

# Small blocks, so that a mask of all local queries would be larger than any other tensor.
LENGTH, VOCABULARY, WORLD, ROWS = 1024, 64, 4, 64
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4,
    "num_query_groups": 2, "head_dim": 8, "initializer_range": 0.2,
}  # fmt: skip
MODELS = {
    "dense": Architecture("granite", num_layers=2, attention_multiplier=0.3, residual_multiplier=0.5, **SHAPE),
    "windowed": Architecture("mistral", num_layers=2, sliding_window=350, **SHAPE),
    "hybrid": Architecture(
        "nemotron_h", num_layers=3, activation="squared_relu", position_embedding="none", hybrid_pattern="M*M",
        mamba_num_heads=8, mamba_head_dim=8, mamba_state_dim=8, mamba_num_groups=4, **SHAPE,
    ),
}  # fmt: skip


class OneSequence:
    """The same random tokens as every sample."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, VOCABULARY, (LENGTH + 1,), generator=torch.Generator().manual_seed(1))
        return sample(tokens)


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation creates."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def step(architecture: Architecture, context_parallel_size: int) -> dict[str, Any]:
    """Loss and gradients (whole on every rank) of one step, and the largest tensor it made."""
    copies = WORLD // context_parallel_size
    parallel = ParallelConfig(
        context_parallel_size=context_parallel_size,
        data_parallel_size=copies,
        use_distributed_optimizer=False,
    )
    with session(parallel, seed=5):
        # The clip is too high to change the gradients.
        settings = OptimizerSettings(eps=1e-8, clip_grad=1e9)
        trainer = Trainer(
            architecture, parallel, BatchConfig(LENGTH, 1, copies), settings, dtype=torch.float32
        )
        with Largest() as made:
            loss, _ = trainer.step(OneSequence(), 0, 0.0)
        gradients = {
            name: parameter.main_grad.clone() for name, parameter in trainer.models[0].named_parameters()
        }
    return {"loss": loss, "gradients": gradients, "largest": made.elements}


def main(folder: Path) -> None:
    blockwise.ROWS = ROWS
    results: dict[str, dict[str, Any]] = {}
    for kind, architecture in MODELS.items():
        for size in (1, 2, 4):
            results[f"{kind}-cp{size}"] = step(architecture, size)
        with wrong_chunk_order():
            results[f"{kind}-wrong-order"] = step(architecture, 2)
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
