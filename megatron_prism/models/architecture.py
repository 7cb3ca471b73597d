"""An architecture as data: every size and scalar a model is built from, in one JSON-ready dataclass."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_prism.errors import CheckpointError, ConfigError, ParallelError, suggest
from megatron_prism.models.rope import RopeScaling
from megatron_prism.pipeline.config import LARGEST_COUNT, one_of
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.platform.process_groups import ParallelConfig

MAMBA, ATTENTION, MLP = "M", "*", "-"
# te: Transformer Engine and mamba_ssm; torch: plain torch; auto: the first of these that the machine can run.
BACKENDS = ("auto", "te", "torch")
# none: a layer keeps all activations for the backward pass; selective: those that take a matrix product to compute
# again; full: its input only.
RECOMPUTE = ("none", "selective", "full")
SIZES = (
    *(
        "vocab_size",
        "hidden_size",
        "num_layers",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
    ),
    *("head_dim", "max_position_embeddings"),
)
# Layers are listed one by one.
MOST_LAYERS = 10_000
MAMBA_SIZES = ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups")
LARGEST_ROPE_THETA = 1e12
# Numbers above zero, with the largest value.
NUMBERS = {
    "norm_epsilon": 1.0,
    "rope_theta": LARGEST_ROPE_THETA,
    "embedding_multiplier": LARGEST_COUNT,
    "residual_multiplier": LARGEST_COUNT,
    "logits_scaling": LARGEST_COUNT,
}


@dataclass
class Architecture:
    """A dense Transformer, or, with `hybrid_pattern`, an attention-Mamba hybrid with one mixer per layer.

    `num_layers` counts Megatron's layers: a Granite-4-H layer of mixer and MLP counts as two. `sliding_window` is the
    number of tokens that a query sees, including itself (None: all tokens before it).
    `attention_multiplier` is the softmax scale itself (None: 1/sqrt(head_dim)); logits are divided by
    `logits_scaling`. The multipliers are Granite's and are never folded into weights. `initializer_range` is the
    standard deviation of fresh weights.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    activation: str = "swiglu"
    norm_epsilon: float = 1e-5
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    position_embedding: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    hybrid_pattern: str | None = None
    mamba_num_heads: int = 0
    mamba_head_dim: int = 0
    mamba_state_dim: int = 0
    mamba_num_groups: int = 1
    # Used only to initialise weights, so architectures that differ in it are the same.
    initializer_range: float = field(default=0.02, compare=False)

    def __post_init__(self) -> None:
        self._check_types()
        if self.activation not in ("swiglu", "squared_relu"):
            raise ConfigError(f"activation={self.activation!r}: must be 'swiglu' or 'squared_relu'")
        if self.position_embedding not in ("rope", "none"):
            raise ConfigError(f"position_embedding={self.position_embedding!r}: must be 'rope' or 'none'")
        if self.position_embedding == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"head_dim={self.head_dim}: must be even, because rotary positions rotate pairs of channels"
            )
        if self.num_attention_heads % self.num_query_groups:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_query_groups={self.num_query_groups}"
            )
        if self.hybrid_pattern is not None:
            unknown = set(self.hybrid_pattern) - {MAMBA, ATTENTION, MLP}
            if unknown or len(self.hybrid_pattern) != self.num_layers:
                raise ConfigError(
                    f"hybrid_pattern={self.hybrid_pattern!r}: must be num_layers={self.num_layers} characters, each "
                    "'M', '*' or '-'"
                )

    def _check_types(self) -> None:
        """Refuse strings and nulls from JSON in place of numbers, before a model is built."""
        # A model without Mamba layers has no sizes of them.
        least = 1 if MAMBA in (self.hybrid_pattern or "") else 0
        for name in (*SIZES, *MAMBA_SIZES):
            fewest = least if name in MAMBA_SIZES else 1
            most = MOST_LAYERS if name == "num_layers" else LARGEST_COUNT
            _whole_number(name, getattr(self, name), fewest, most)
        if self.sliding_window is not None:
            _whole_number("sliding_window", self.sliding_window, 1, LARGEST_COUNT)
        for name, largest in NUMBERS.items():
            _number(name, getattr(self, name), largest)
        if self.attention_multiplier is not None:
            _number("attention_multiplier", self.attention_multiplier, LARGEST_COUNT)
        # Zero is the value of a published config whose weights are always loaded.
        if self.initializer_range != 0 or isinstance(self.initializer_range, bool):
            _number("initializer_range", self.initializer_range, LARGEST_COUNT)

    @property
    def is_hybrid(self) -> bool:
        return self.hybrid_pattern is not None

    @property
    def kinds_of_layers(self) -> list[str]:
        """The parts of each of `num_layers` layers: one in a hybrid, attention and MLP in a dense model."""
        return list(self.hybrid_pattern) if self.hybrid_pattern else [ATTENTION + MLP] * self.num_layers

    def padded_vocab_size(self, tensor_model_parallel_size: int) -> int:
        """Rows of the embedding: the vocabulary size, rounded up so that every TP rank has the same number of rows."""
        return -(-self.vocab_size // tensor_model_parallel_size) * tensor_model_parallel_size

    def check_parallel(self, parallel: ParallelConfig) -> None:
        """Raise a ParallelError naming the size that the layout does not divide."""
        tp = parallel.tensor_model_parallel_size
        divided = {"num_attention_heads": tp, "num_query_groups": tp, "ffn_hidden_size": tp}
        if self.is_hybrid:
            divided |= {"mamba_num_heads": tp * parallel.context_parallel_size}
            if self.mamba_num_groups % tp:
                raise ParallelError(
                    f"tensor_model_parallel_size={tp}: each rank needs whole Mamba groups and {self.family} has "
                    f"mamba_num_groups={self.mamba_num_groups}; use {self._instead_of_tensor_parallelism(tp)}"
                )
            groups, cp = self.mamba_num_groups // tp, parallel.context_parallel_size
            if groups % cp and cp % groups:
                raise ParallelError(
                    f"context_parallel_size={cp}: neither divides the {groups} Mamba groups of a tensor-parallel rank "
                    f"nor is a multiple of them (mamba_num_groups={self.mamba_num_groups})"
                )
            if parallel.virtual_pipeline_model_parallel_size:
                raise ParallelError(
                    "virtual_pipeline_model_parallel_size: hybrid models have no virtual pipeline stages; unset it"
                )
        for name, size in divided.items():
            if getattr(self, name) % size:
                raise ParallelError(
                    f"{name}={getattr(self, name)} is not divisible by {size} "
                    f"(tensor {tp}, context {parallel.context_parallel_size})"
                )
        if parallel.split == "even":
            parallel.layers_per_stage(self.num_layers)

    def _instead_of_tensor_parallelism(self, wanted: int) -> str:
        fitting = [size for size in range(wanted - 1, 1, -1) if self.mamba_num_groups % size == 0]
        smaller = f"tensor_model_parallel_size={fitting[0]}, or " if fitting else ""
        return f"{smaller}context_parallel_size, pipeline_model_parallel_size or data_parallel_size instead"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read `architecture.json`; a CheckpointError names the file and the key at fault."""
        return cls.from_json(read_object(Path(path), CheckpointError), str(path))

    @classmethod
    def from_json(cls, data: dict[str, Any], path: str) -> Architecture:
        """The architecture in a JSON object of the file `path`; the same errors as `load`."""
        known = {each.name for each in fields(cls)}
        for key in data:
            if key not in known:
                raise CheckpointError(f"{path}: unknown key '{key}'{suggest(key, known)}")
        missing = [each.name for each in fields(cls) if _required(each) and each.name not in data]
        if missing:
            raise CheckpointError(f"{path}: no key '{missing[0]}'; convert the model again")
        try:
            if data.get("rope_scaling"):
                data["rope_scaling"] = RopeScaling(**data["rope_scaling"])
            return cls(**data)
        except (TypeError, ConfigError) as problem:
            raise CheckpointError(f"{path}: {problem}") from None

    def require_same(self, other: Architecture, where: str) -> None:
        """Raise a CheckpointError naming the first field in which a checkpoint's architecture differs."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.compare and mine != theirs:
                raise CheckpointError(
                    f"{where}: the checkpoint has {each.name}={theirs}, this model has {mine}; "
                    "use a checkpoint of the same architecture"
                )


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _whole_number(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r}: must be a whole number of {least} or more")
    if value > most:
        raise ConfigError(f"{name}={value}: must be at most {most}")


def _number(name: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r}: must be a finite number greater than zero")
    if value > most:
        raise ConfigError(f"{name}={value}: must be at most {most:g}")


def check_recompute(recompute: str, architecture: Architecture, fp8: str | None) -> None:
    """Raise a ConfigError for an unknown value, or one that this model does not support."""
    one_of(recompute, RECOMPUTE, "recompute")
    if recompute == "full" and architecture.is_hybrid and fp8:
        raise ConfigError(
            f"recompute=full: not supported with fp8={fp8} for hybrid models, and this {architecture.family} model is "
            "one; use recompute=none, or bf16 without fp8"
        )
