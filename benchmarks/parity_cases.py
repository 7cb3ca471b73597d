"""The models and layouts of `parity.py`, as data.

Each model has the features of a real family at a size of some ten thousand parameters. Weights are drawn with a large
standard deviation, so that attention, norms, dt and multipliers all matter for the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig

VOCABULARY, LENGTH, BATCH, STEPS, HALF = 96, 64, 8, 10, 5
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 8,
    "initializer_range": 0.1,
}
MULTIPLIERS: dict[str, Any] = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 4.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
MAMBA: dict[str, Any] = {"mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_state_dim": 8}
MODELS = {
    "granite": Architecture("granite", num_layers=4, num_query_groups=2, **SHAPE, **MULTIPLIERS),
    "llama": Architecture("llama", num_layers=6, num_query_groups=2, tie_word_embeddings=False, **SHAPE),
    "mistral": Architecture(
        "mistral",
        num_layers=4,
        num_query_groups=4,
        sliding_window=20,
        tie_word_embeddings=False,
        **SHAPE,
    ),
    "granite-h": Architecture(
        "granitemoehybrid",
        num_layers=8,
        num_query_groups=2,
        position_embedding="none",
        hybrid_pattern="M-*-M-M-",
        **SHAPE,
        **MULTIPLIERS,
        **MAMBA,
    ),
    "nemotron-h": Architecture(
        "nemotron_h",
        num_layers=4,
        num_query_groups=4,
        activation="squared_relu",
        position_embedding="none",
        hybrid_pattern="M-M*",
        tie_word_embeddings=False,
        mamba_num_groups=4,
        **SHAPE,
        **MAMBA,
    ),
}
# The relative difference of the loss, at the worst of ten steps, that a layout may have in fp32.
BOUNDS = {name: 1e-4 if model.is_hybrid else 1e-5 for name, model in MODELS.items()}


@dataclass(frozen=True)
class Case:
    """Ten steps of a model under a layout, compared with ten steps of one process.

    Attributes:
        settings: keyword arguments of the Trainer, such as `recompute`.
        before: train the first five steps under this layout, save, and resume under `parallel`.
        control: a fault to plant on purpose (`parity_ranks.CONTROLS`); such a case must exceed its bound.
    """

    model: str
    parallel: ParallelConfig
    dtype: str = "fp32"
    micro_batch_size: int = 2
    settings: tuple[tuple[str, Any], ...] = ()
    before: ParallelConfig | None = None
    control: str = ""

    @property
    def reference(self) -> str:
        """The name of the single-process run that this case is compared with."""
        return f"{self.model}/{self.dtype}" + ("/documents" if self.separates_documents else "")

    @property
    def separates_documents(self) -> bool:
        """Whether the documents of a row do not see each other."""
        return bool(dict(self.settings).get("intra_document"))

    @property
    def name(self) -> str:
        """A unique description, such as 'granite: TP 2, SP, CP 2, recompute full'."""
        parts = [layout_name(self.parallel)]
        if self.before is not None:
            parts = [f"{layout_name(self.before)} -> {parts[0]}"]
        if self.micro_batch_size != 2:
            parts.append(f"micro-batch {self.micro_batch_size}")
        parts += [key if value is True else f"{key} {value}" for key, value in self.settings]
        parts += [self.dtype] if self.dtype != "fp32" else []
        return f"{self.model}: {', '.join(parts)}" + (f" [{self.control}]" if self.control else "")

    @property
    def world_size(self) -> int:
        """The number of ranks that take part."""
        return max(self.parallel.world_size, self.before.world_size if self.before else 1)


def layout(
    tp: int = 1,
    *,
    pp: int = 1,
    vp: int | None = None,
    cp: int = 1,
    dp: int = 1,
    sp: bool = False,
    zero: bool = True,
    first: int | None = None,
    last: int | None = None,
    split: str = "even",
) -> ParallelConfig:
    """A layout in short; `zero` is the distributed optimizer, `first` and `last` are layers of pipeline stages."""
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vp,
        context_parallel_size=cp,
        data_parallel_size=dp,
        sequence_parallel=sp,
        use_distributed_optimizer=zero,
        layers_in_first_stage=first,
        layers_in_last_stage=last,
        split=split,
    )


def layout_name(parallel: ParallelConfig) -> str:
    """'TP 2, SP, DP 2' for a layout; 'one' for a single process."""
    parts = parallel.short_sizes()
    ends = {"first": parallel.layers_in_first_stage, "last": parallel.layers_in_last_stage}
    parts += [f"{name} stage {count}" for name, count in ends.items() if count is not None]
    parts += [parallel.split] if parallel.split != "even" else []
    if not parallel.use_distributed_optimizer:
        parts.append("plain optimizer")
    return ", ".join(parts) or "one"


ONE = layout()
FULL = (("recompute", "full"),)
SELECTIVE = (("recompute", "selective"),)
DOCUMENTS = (("intra_document", True),)
SP2, SP2_CP2, PP2, CP2, DP2 = (
    layout(2, sp=True),
    layout(2, cp=2, sp=True),
    layout(pp=2),
    layout(cp=2),
    layout(dp=2),
)
CASES = [
    Case("granite", ONE, settings=FULL),
    Case("granite", ONE, micro_batch_size=1),
    Case("granite", layout(2)),
    Case("granite", SP2, settings=FULL),
    Case("granite", PP2),
    Case("granite", SP2, settings=SELECTIVE),
    Case("granite", layout(pp=2, vp=2)),
    Case("granite", CP2),
    Case("granite", DP2),
    Case("granite", layout(dp=2, zero=False), micro_batch_size=1),
    Case("granite", layout(2, pp=2)),
    Case("granite", SP2_CP2),
    Case("granite", layout(cp=2, dp=2, zero=False)),
    Case("granite", layout(pp=4), settings=FULL),
    Case("granite", layout(pp=2, first=3)),
    Case("granite", layout(pp=3, last=2), settings=SELECTIVE),
    Case("granite", layout(pp=2, split="balanced"), before=layout(pp=2, first=1)),
    Case("granite", ONE, before=SP2),
    Case("granite", PP2, before=layout(dp=4)),
    Case("granite", SP2_CP2, before=DP2),
    Case("granite", SP2, settings=DOCUMENTS),
    Case("granite", CP2, settings=DOCUMENTS),
    Case("granite", PP2, settings=DOCUMENTS),
    Case("llama", layout(pp=2, vp=2, first=2)),
    Case("llama", layout(pp=2, vp=2, split="balanced"), settings=FULL),
    Case("mistral", layout(4, sp=True)),
    Case("mistral", CP2),
    Case("mistral", layout(pp=2, vp=2)),
    Case("mistral", CP2, before=layout(2, pp=2)),
    Case("granite-h", PP2),
    Case("granite-h", layout(pp=3, first=4, last=1)),
    Case("granite-h", layout(pp=2, last=3), before=layout(pp=3, last=2)),
    Case("granite-h", CP2),
    Case("granite-h", DP2, settings=FULL),
    Case("granite-h", CP2, before=PP2),
    Case("nemotron-h", layout(2)),
    Case("nemotron-h", SP2, settings=FULL),
    Case("nemotron-h", PP2),
    Case("nemotron-h", CP2, settings=SELECTIVE),
    Case("nemotron-h", CP2),
    Case("nemotron-h", layout(2, pp=2)),
    Case("nemotron-h", layout(2, pp=2, split="balanced"), settings=FULL),
    Case("nemotron-h", SP2_CP2),
    Case("nemotron-h", DP2, before=SP2),
    Case("nemotron-h", SP2, settings=DOCUMENTS),
    Case("nemotron-h", CP2, settings=DOCUMENTS),
    Case("granite", layout(cp=2, zero=False), control="gradients not reduced"),
    Case("granite", CP2, control="chunks in a wrong order"),
    Case("granite", SP2, control="norm gradients not summed over TP"),
    Case("granite", DP2, control="each replica reads the first one's samples"),
    Case("granite", DP2, before=SP2, control="optimizer state not restored"),
    Case("nemotron-h", layout(cp=2, zero=False), control="gradients not reduced"),
    Case("granite", SP2, dtype="bf16"),
    Case("granite", CP2, dtype="bf16"),
    Case("nemotron-h", SP2, dtype="bf16"),
]
