"""The long-context branch of a published model's recipe: merge, extension to 128k tokens, RULER of every model.

Section 8.1 and Tables 7, 17 and 18 of the paper, which does this for Granite-3.3-8B after the MC mixture. Where
the paper is not specific, a comment says what is assumed: the sampling weights, the length from which a document is
long, and whether a batch is 9 sequences or 36.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from megatron_prism.data.mixture import Mixture
from megatron_prism.data.packing import PackDocuments
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.merging.stage import Merge
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.extension import ContextExtension
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.study.midtraining import Start
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

LENGTHS = (8192, 16384, 32768, 65536, 131_072)
LENGTH, TINY_LENGTH = LENGTHS[-1], 1024
MIXTURE, TINY_MIXTURE = "long-context", "shoebox-long"
# Assumption: the paper filters "short-context samples" and does not say where short ends.
MIN_TOKENS = 8192
# Section 8.1.
MERGE = {"base": 0.15, "midtrain": 0.85}
# Assumption: if context parallelism is inside the data-parallel mesh, as in the current lm-engine, Table 17 gives a
# batch of 9 sequences (1.18M tokens); as a separate dimension, 36.
GLOBAL_BATCH = 9
TINY_STEPS, TINY_SAMPLES, TINY_TASKS = 2, 2, ["needle_single", "needle_multikey"]


@dataclass(frozen=True)
class LongContext:
    """How one model reaches `LENGTH` tokens.

    Attributes:
        parallel: layout of the extension on a node of eight GPUs.
        rope_theta: the new rotary base, where the model's own positions end before; None for models that have none.
    """

    parallel: ParallelConfig
    rope_theta: float | None = None


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
        recompute="full",
        batch=BatchConfig(sequence_length=LENGTH, micro_batch_size=1, global_batch_size=GLOBAL_BATCH),
        schedule=Schedule(lr=5e-5, style="exponential", warmup_steps=100, final_factor=0.0),
        optimizer=OptimizerSettings(beta1=0.9, beta2=0.95, eps=1e-10, weight_decay=0.1, clip_grad=1.0),
        parallel=long_context.parallel,
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
    graph: Graph, start: Start, midtrain: Node, long_context: LongContext, seed: int, tiny: bool
) -> Node:
    """Add the branch; returns the restored model."""
    length = TINY_LENGTH if tiny else LENGTH
    mixture = TINY_MIXTURE if tiny else MIXTURE
    base, tokenizer, architecture = start.imported, start.tokenizer, start.architecture
    merge = graph.add("merge", Merge(weights=dict(MERGE)), base=base, midtrain=midtrain)
    packed = graph.add(
        "packed",
        PackDocuments(
            sequence_length=length,
            min_tokens=2 if tiny else MIN_TOKENS,
            sources=list(Mixture.load(mixture).weights),
        ),
        tokens=start.tokens,
    )

    make = tiny_extension if tiny else paper_extension

    def extend(name: str, start: Node, trainable: str, first: Node | None = None) -> Node:
        stage = make(architecture, long_context, seed, trainable)
        derive = partial(extension_of, midtrain, packed, first)
        return graph.add(name, stage, derive, tokens=packed, tokenizer=tokenizer, init=start)

    # The rows of Table 7 are compared, so all are extended as `extend` is.
    extended = extend("extend", merge, "all")
    # In the table's order.
    models = {
        "base": base,
        "midtrain": midtrain,
        "midtrain_extend_attention": extend("midtrain_extend_attention", midtrain, "attention", extended),
        "midtrain_extend": extend("midtrain_extend", midtrain, "all", extended),
        "merge": merge,
        "extend_attention": extend("extend_attention", merge, "attention", extended),
        "extend": extended,
    }
    for name, node in models.items():
        positions = partial(_positions, node if "extend" in name else midtrain, "extend" in name)
        ruler = _ruler(positions(), seed, tiny)
        graph.add(f"ruler_{name}", ruler, partial(_within, positions), model=node, tokenizer=tokenizer)
    return extended


def extension_of(midtrain: Node, packed: Node, first: Node | None, stage: Train) -> Train:
    """Training of mid-training's architecture on the packed sequences.

    Args:
        first: the extension whose settings this one has, too, so that they can be compared; None if it is the first.
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
        batch=replace(settings.batch, sequence_length=packed.stage.sequence_length),
        schedule=settings.schedule,
        optimizer=settings.optimizer,
    )


def _positions(node: Node, extended: bool) -> int:
    """Of a model: an extended one's, or of those that mid-training starts from and ends with."""
    assert isinstance(node.stage, Train)
    architecture = node.stage.trained_architecture if extended else node.stage.architecture
    return architecture.max_position_embeddings


def _within(positions: Callable[[], int], stage: RulerEvaluate) -> RulerEvaluate:
    """RULER at the lengths that the model has positions for."""
    return replace(stage, lengths=[length for length in stage.lengths if length <= positions()])


def _extension(
    architecture: Architecture, long_context: LongContext, length: int, tiny: bool = False
) -> ContextExtension | None:
    """None for a model that has the positions already; its rotary frequencies were made for them."""
    if architecture.max_position_embeddings >= length:
        return None
    if architecture.position_embedding == "none":
        return ContextExtension(length)
    # A miniature has fewer positions than its model, but the same frequencies, which reach far beyond them.
    return ContextExtension(
        length, long_context.rope_theta, keep_rope=tiny and long_context.rope_theta is None
    )


def _ruler(reach: int, seed: int, tiny: bool) -> RulerEvaluate:
    """The tasks at every length that the model has positions for."""
    if tiny:
        return RulerEvaluate(tasks=TINY_TASKS, lengths=[reach], samples=TINY_SAMPLES, seed=seed)
    return RulerEvaluate(lengths=[length for length in LENGTHS if length <= reach], seed=seed)
