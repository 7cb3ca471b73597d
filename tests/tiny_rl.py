"""A model of a few thousand weights, prompts, and a run of reinforcement learning on them that takes a second a step.

A random model is never right, so the reward is how little an answer repeats itself: it differs from answer to answer,
and its verdicts still come from the real grading pool.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import model_state, write_checkpoint
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.platform.process_groups import cuda_requests_on_cpu, session
from megatron_prism.rl.gate import GateSettings
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.rl.stage import Reinforce
from megatron_prism.training.schedule import Schedule
from megatron_prism.verification.settings import GradingSettings

# 60 of the 64 rows are tokens: trainer and sampler must agree that the others have no probability.
VOCABULARY, PADDED, LIMIT = 60, 64, 48
SIZES = {"vocab_size": PADDED, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4}
DENSE = Architecture(
    family="granite", num_layers=4, num_query_groups=2, head_dim=8, max_position_embeddings=LIMIT,
    embedding_multiplier=6.0, logits_scaling=2.0, **SIZES,
)  # fmt: skip
HYBRID = Architecture(
    family="nemotron_h", num_layers=4, num_query_groups=2, head_dim=8, activation="squared_relu",
    max_position_embeddings=LIMIT, tie_word_embeddings=False, position_embedding="none", hybrid_pattern="M-M*",
    mamba_num_heads=8, mamba_head_dim=8, mamba_state_dim=16, mamba_num_groups=2, **SIZES,
)  # fmt: skip
MODELS = {"dense": DENSE, "hybrid": HYBRID}
PROMPTS = ["ABC", "AAAAAAAAAAAA", "CAB", "B", "BACK", "D", "DEAD", "FACADE"]


def make_tokenizer(folder: Path) -> None:
    """One character per token."""
    vocabulary = {"<|endoftext|>": 0, "@": 1} | {chr(65 + i): 2 + i for i in range(VOCABULARY - 2)}
    raw = Tokenizers(models.WordLevel(vocabulary, unk_token="@"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(folder)


def make_inputs(folder: Path, kind: str) -> dict[str, Artifact]:
    """Model, tokenizer and prompts as artifacts under `folder`."""
    make_tokenizer(folder / "tokenizer")
    (folder / "prompts" / "prompts").mkdir(parents=True)
    lines = [
        {"id": f"p{i}", "domain": "math", "prompt": prompt, "kind": "choice", "answer": "A", "tests": []}
        for i, prompt in enumerate(PROMPTS)
    ]
    (folder / "prompts" / "prompts" / "math.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    make_model(folder / "model", MODELS[kind])
    return {name: artifact(folder / name) for name in ("model", "tokenizer", "prompts")}


def make_model(folder: Path, architecture: Architecture) -> None:
    """A train artifact with random weights."""
    (folder / "checkpoint").mkdir(parents=True)
    architecture.save(folder / "architecture.json")
    generator = torch.Generator().manual_seed(5)
    with session(seed=1), torch.no_grad(), cuda_requests_on_cpu():
        model = build_model(architecture)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        write_checkpoint(model_state([model]), folder / "checkpoint")


def artifact(folder: Path) -> Artifact:
    return Artifact(folder, Receipt(folder.name, "0", folder.name, {}, {}))


def tiny_run(kind: str = "dense", **changes) -> Reinforce:
    settings = {
        "architecture": MODELS[kind],
        "steps": 3,
        "seed": 7,
        "loop": LoopSettings(
            prompts_per_step=4, samples_per_prompt=3, reference_alpha=0.5, reference_interval=2
        ),
        "rewards": RewardSettings(
            format_gate=False,
            unfinished=None,
            repetition_ngram=1,
            repetition_threshold=0.0,
            repetition_penalty=1.0,
        ),
        "gate": GateSettings(action="stop", mean_ratio=1.001, worst_log_ratio=1e-3),
        "schedule": Schedule(lr=3e-3, warmup_steps=0, style="linear", final_factor=0.0),
        "context_length": 40,
        "max_new_tokens": 14,
        "evaluate_every": 0,
        "checkpoint_every": 0,
        "answers_every": 1,
        "slots": 5,
        "grading": GradingSettings(workers=1, sandbox="weak"),
    }
    return Reinforce(**settings | changes)
