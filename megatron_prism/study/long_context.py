"""The long-context phase of a published model's recipe: merge, extension to 128k tokens, RULER of every model.

It follows section 8.1 and Tables 7, 17 and 18 of the paper, which does this for Granite-3.3-8B after the MC mixture.
Where the paper is not specific, a comment states our assumption: the sampling weights, the minimum length of a long
document, and whether a batch has 9 or 36 sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from megatron_prism.data.mixture import Mixture
from megatron_prism.data.packing import PackDocuments
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.merging.stage import Merge
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.extension import ContextExtension
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.layouts import TRAIN, LayoutTable, layout_follows
from megatron_prism.study.midtraining import StudyInputs
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

LENGTHS = (8192, 16384, 32768, 65536, 131_072)
LENGTH, TINY_LENGTH = LENGTHS[-1], 1024
MIXTURE, TINY_MIXTURE = "long-context", "shoebox-long"
# Assumption: the paper filters "short-context samples" and does not give the minimum length of the rest.
MIN_TOKENS = 8192
# Section 8.1.
MERGE = {"base": 0.15, "midtrain": 0.85}
# Assumption: Table 17 gives a batch of 9 sequences (1.18M tokens) if context parallelism is inside the data-parallel
# mesh, as in the current lm-engine. If it was a separate dimension, the batch has 36.
GLOBAL_BATCH = 9
TINY_STEPS, TINY_SAMPLES, TINY_TASKS = 2, 2, ["needle_single", "needle_multikey"]


# Which rows of Table 7 are extended: all of them, or only the merged model, by all parameters or by attention.
FULL, ATTENTION, ALL = "full", "attention", "all"
EXTENSIONS = (FULL, ATTENTION, ALL)


@dataclass(frozen=True)
class LongContext:
    """How the context of one model is extended to `LENGTH` tokens.

    Attributes:
        rows: which extensions are trained, one of `EXTENSIONS`.
        gpus: of the extension.
        rope_theta: the new rotary base of a rotary model with fewer positions; None for all other models.
    """

    layouts: LayoutTable
    rows: str = ALL
    gpus: int = 8
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        one_of(self.rows, EXTENSIONS, "extension")


def paper_extension(
    architecture: Architecture, long_context: LongContext, seed: int, trainable: str
) -> Train:
    """Table 17: 1,000 steps at 128k tokens, learning rate 5e-5 with 100 steps of warm-up and exponential decay to 0."""
    return Train(
        architecture=architecture,
        extension=_extension(architecture, long_context, LENGTH),
        mixture=MIXTURE,
        steps=1000,
        seed=seed,
        dtype="bf16",
        trainable=trainable,
        batch=BatchConfig(sequence_length=LENGTH, micro_batch_size=1, global_batch_size=GLOBAL_BATCH),
        schedule=Schedule(lr=5e-5, style="exponential", warmup_steps=100, final_factor=0.0),
        optimizer=OptimizerSettings(beta1=0.9, beta2=0.95, eps=1e-10, weight_decay=0.1, clip_grad=1.0),
        validation_batches=1,
        checkpoint_every=100,
        log_every=1,
    )


def tiny_extension(architecture: Architecture, long_context: LongContext, seed: int, trainable: str) -> Train:
    """A few steps on the shoebox at `TINY_LENGTH`, in fp32 on two processes with context parallelism."""
    return Train(
        architecture=architecture,
        extension=_extension(architecture, long_context, TINY_LENGTH, tiny=True),
        mixture=TINY_MIXTURE,
        steps=TINY_STEPS,
        seed=seed,
        trainable=trainable,
        recompute="full",
        batch=BatchConfig(sequence_length=TINY_LENGTH, micro_batch_size=1, global_batch_size=1),
        schedule=Schedule(lr=1e-3, style="exponential", warmup_steps=1, final_factor=0.0),
        parallel=ParallelConfig(context_parallel_size=2),
        validation_batches=1,
    )


def add_long_context(
    graph: Graph, inputs: StudyInputs, midtrain: Node, *, long_context: LongContext, seed: int, tiny: bool
) -> Node:
    """Add the phase to the graph; returns the restored model."""
    length = TINY_LENGTH if tiny else LENGTH
    mixture = TINY_MIXTURE if tiny else MIXTURE
    base, tokenizer, architecture = inputs.imported, inputs.tokenizer, inputs.architecture
    merge = graph.add("merge", Merge(weights=dict(MERGE)), base=base, midtrain=midtrain)
    packed = graph.add(
        "packed",
        PackDocuments(
            sequence_length=length,
            min_tokens=2 if tiny else MIN_TOKENS,
            sources=list(Mixture.load(mixture).weights),
        ),
        tokens=inputs.tokens,
    )

    make = tiny_extension if tiny else paper_extension
    implied = None if tiny else layout_follows(long_context.layouts, TRAIN, long_context.gpus)

    def extend(name: str, start: Node, trainable: str, first: Node | None = None) -> Node:
        stage = make(architecture, long_context, seed, trainable)
        derive = partial(extension_of, midtrain, packed, first)
        return graph.add(name, stage, derive, implied, tokens=packed, tokenizer=tokenizer, init=start)

    # The rows of Table 7, in its order. They are compared, so all use the settings of the one that is made first.
    models = {"base": base, "midtrain": midtrain, "merge": merge}
    if long_context.rows == ATTENTION:
        restored = models["extend_attention"] = extend("extend_attention", merge, "attention")
    else:
        restored = extend("extend", merge, "all")
        if long_context.rows == ALL:
            rows = {
                "midtrain_extend_attention": extend(
                    "midtrain_extend_attention", midtrain, "attention", restored
                ),
                "midtrain_extend": extend("midtrain_extend", midtrain, "all", restored),
                "merge": merge,
                "extend_attention": extend("extend_attention", merge, "attention", restored),
            }
            models = {"base": base, "midtrain": midtrain, **rows}
        models["extend"] = restored
    for name, node in models.items():
        positions = partial(_positions, node if "extend" in name else midtrain, "extend" in name)
        ruler = _ruler(positions(), seed, tiny)
        graph.add(f"ruler_{name}", ruler, partial(_within, positions), model=node, tokenizer=tokenizer)
    return restored


def extension_of(midtrain: Node, packed: Node, first: Node | None, stage: Train) -> Train:
    """`stage` on the packed sequences, with the architecture that mid-training produces.

    Args:
        first: the extension whose settings are copied, so that both can be compared; None if this is the first.
    """
    assert isinstance(midtrain.stage, Train)
    assert isinstance(packed.stage, PackDocuments)
    settings = stage if first is None else first.stage
    assert isinstance(settings, Train)
    return replace(
        stage,
        architecture=midtrain.stage.trained_architecture,
        extension=settings.extension,
        mixture=settings.mixture,
        steps=settings.steps,
        # The size of a micro-batch belongs to the layout, which each of them has for itself.
        batch=replace(
            settings.batch,
            sequence_length=packed.stage.sequence_length,
            micro_batch_size=stage.batch.micro_batch_size,
        ),
        schedule=settings.schedule,
        optimizer=settings.optimizer,
    )


def _positions(node: Node, extended: bool) -> int:
    """The number of positions of the model: of the extended one, or of the one that training starts from."""
    assert isinstance(node.stage, Train)
    architecture = node.stage.trained_architecture if extended else node.stage.architecture
    return architecture.max_position_embeddings


def _within(positions: Callable[[], int], stage: RulerEvaluate) -> RulerEvaluate:
    """RULER at the lengths for which the model has positions."""
    most = positions()
    lengths = [length for length in stage.lengths if length <= most]
    if not lengths:
        raise ConfigError(
            f"lengths={stage.lengths}: the model has {most} positions; use one of at most {most}"
        )
    return replace(stage, lengths=lengths)


def _extension(
    architecture: Architecture, long_context: LongContext, length: int, tiny: bool = False
) -> ContextExtension | None:
    """None if the model already has enough positions, because its rotary frequencies then fit them."""
    if architecture.max_position_embeddings >= length:
        return None
    if architecture.position_embedding == "none":
        return ContextExtension(length)
    # A miniature has fewer positions than its model but the same frequencies, which fit far more positions.
    return ContextExtension(
        length, long_context.rope_theta, keep_rope=tiny and long_context.rope_theta is None
    )


def _ruler(positions: int, seed: int, tiny: bool) -> RulerEvaluate:
    """The tasks at every length for which the model has positions."""
    if tiny:
        return RulerEvaluate(tasks=TINY_TASKS, lengths=[positions], samples=TINY_SAMPLES, seed=seed)
    return RulerEvaluate(lengths=[length for length in LENGTHS if length <= positions], seed=seed)
