"""Question: is our training step as fast as a plain transformers loop (dense), and 1.3 times as fast (hybrid)?

    python benchmarks/train_step.py --dtype bf16 --json result.json

Both sides train the same shape on the same tokens and alternate in one process: forward, backward, gradient clipping
and fused AdamW with fp32 main weights. Our side is `training.trainer.Trainer` with data as in the `train` stage. The
other side is the loop in the documentation of transformers: `model(input_ids, labels=...)` of the same architecture
(made from the config we export), SDPA attention, autocast for bf16, `clip_grad_norm_`, `torch.optim.AdamW(fused=True)`.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from typing import Any

import measure
import torch

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import local_parameter_count
from megatron_prism.models.families import hf_config
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.study.small_models import MODELS
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

LEARNING_RATE = 1e-4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = ("shoebox", "wide")


def architecture_of(kind: str, size: str) -> Architecture:
    """The quickstart's model, or one 2.5 times as wide, in which matrix products dominate."""
    small = MODELS[kind]
    if size == "shoebox":
        return small
    wide = {
        "hidden_size": 320,
        "ffn_hidden_size": 960,
        "num_attention_heads": 10,
        "num_query_groups": 5,
        "head_dim": 32,
    }
    if kind == "hybrid":
        wide |= {"mamba_num_heads": 20, "mamba_head_dim": 32, "mamba_state_dim": 64}
    return replace(small, **wide)  # type: ignore[arg-type]


class RandomTokens:
    """Samples like those of the blend, from a fixed table of random tokens."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self.table = torch.randint(vocab_size, (64, length + 1), generator=torch.Generator().manual_seed(0))
        self.mask, self.positions = torch.ones(length), torch.arange(length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.table[index % len(self.table)]
        return {
            "tokens": row[:-1],
            "labels": row[1:],
            "loss_mask": self.mask,
            "position_ids": self.positions,
        }


class Peer:
    """A plain training loop on transformers."""

    def __init__(self, architecture: Architecture, dtype: torch.dtype, settings: OptimizerSettings) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**hf_config(architecture))
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device())
        self.autocast: Any = (
            torch.autocast(device().type, torch.bfloat16)
            if dtype is torch.bfloat16
            else contextlib.nullcontext()
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=LEARNING_RATE,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.clip = settings.clip_grad

    def step(self, tokens: torch.Tensor) -> float:
        """One step on `tokens` `[batch, seq]`; transformers shifts the labels itself."""
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return float(loss)


def compare(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both sides on one kind of model."""
    architecture = architecture_of(kind, arguments.size)
    dtype = DTYPES[arguments.dtype]
    settings = OptimizerSettings(eps=1e-8)
    batch = BatchConfig(arguments.length, arguments.batch, arguments.batch)
    data = RandomTokens(architecture.vocab_size, arguments.length)
    with session(seed=1):
        ours = Trainer(architecture, ParallelConfig(), batch, settings, dtype=dtype)
        peer = Peer(architecture, dtype, settings)
        tokens = data.table[: arguments.batch, :-1].to(device())
        sizes = {
            "ours": local_parameter_count(ours.models[0]),
            "transformers": local_parameter_count(peer.model),
        }
        assert sizes["ours"] == sizes["transformers"], f"the two models do not have the same shape: {sizes}"
        timings = measure.alternate(
            {
                "ours": lambda: ours.step(data, 0, LEARNING_RATE),
                "transformers": lambda: peer.step(tokens),
            },
            arguments.rounds,
            arguments.calls,
            arguments.warmup,
        )
    per_step = arguments.batch * arguments.length
    return {
        "model": kind,
        "parameters": sizes["ours"],
        "tokens_per_second": {name: round(per_step / timing.median) for name, timing in timings.items()},
        "seconds_per_step": {name: vars(timing) for name, timing in timings.items()},
        "ratio": timings["transformers"].median / timings["ours"].median,
    }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--size", choices=SIZES, default="shoebox")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=2, help="steps per round and side")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [compare(kind, arguments) for kind in arguments.models]
    title = f"training step, {arguments.size}, {arguments.dtype}, {arguments.threads} threads"
    measure.print_speeds(title, results, "parameters")
    measure.write(arguments, {"results": results})


if __name__ == "__main__":
    main()
