"""The reinforcement learning of a recipe: prompts, difficulty filter, mix, training, frontier.

It follows sections 9.1 and 15 and Table 21 of the paper. Where the paper is not specific, a comment states our
assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.check_prompts import CheckPrompts
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.frontier import Frontier
from megatron_prism.rl.mix import MC, MCS, PromptMix
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.rl.stage import Reinforce
from megatron_prism.rl.variants import variant
from megatron_prism.study.midtraining import StudyInputs, initial_architecture, trained_architecture
from megatron_prism.training.schedule import Schedule
from megatron_prism.verification.settings import GradingSettings

# Section 9.1: math with exactly 1 right answer of 16, code and science with at least one.
ANSWERS = 16
# Table 21; a model with fewer positions uses all that it has.
CONTEXT = 16_384
# Assumption: the paper does not say how many prompts figure 10 tracks.
TRACKED_PROMPTS = 256
# Assumption: Table 21 names TR-DPO's soft update, but neither its weight nor its interval. The weight 0.6 is
# open-instruct's.
REFERENCE_INTERVAL = 100
# The keys and values of 16 texts of 16,384 tokens fit on a GPU next to the model, its optimizer and its reference.
SLOTS = 16


@dataclass(frozen=True)
class RLStages:
    """The stages of reinforcement learning, to be added to a graph.

    Attributes:
        prompts: reads the prompts and drops those that cannot be graded.
        filter: counts the right answers of the mid-trained model to each prompt.
        mix: chooses the prompts to train on by these counts.
        tracked: chooses the prompts whose pass rate the frontier shows.
        train: the run; each starting model gets one with the same settings.
    """

    prompts: CheckPrompts
    filter: Difficulty
    mix: PromptMix
    tracked: PromptMix
    train: Reinforce


def paper_rl_stages(
    architecture: Architecture,
    *,
    parallel: ParallelConfig,
    seed: int,
    prompts: str,
    method: str,
    sandbox: str,
) -> RLStages:
    """Table 21 on the unbalanced MCS mix: 1,000 steps of 64 prompts, 16 answers each, 16,384 tokens of context."""
    chosen, grading = variant(method), GradingSettings(sandbox=sandbox)
    settings = LoopSettings(reference_interval=REFERENCE_INTERVAL)
    train = Reinforce(
        architecture=architecture,
        seed=seed,
        dtype="bf16",
        # Policy, optimizer and reference leave no room for the activations of a row (docs/training.md).
        recompute="full",
        loop=chosen.loop(settings),
        objective=chosen.objective,
        rewards=chosen.rewards(CONTEXT),
        parallel=parallel,
        context_length=min(CONTEXT, architecture.max_position_embeddings),
        slots=SLOTS,
        grading=grading,
    )
    sampling = SamplingParams(max_new_tokens=train.max_new_tokens, seed=seed)
    return RLStages(
        prompts=CheckPrompts(files=[_prompts_path(prompts)], grading=grading),
        filter=Difficulty(samples=ANSWERS, sampling=sampling, slots=SLOTS, grading=grading),
        mix=PromptMix(domains=list(MCS), seed=seed),
        tracked=_tracked_prompts(MCS, TRACKED_PROMPTS, seed),
        train=train,
    )


def tiny_rl_stages(
    architecture: Architecture, *, parallel: ParallelConfig, seed: int, method: str, sandbox: str
) -> RLStages:
    """Two steps on prompts that a random model never solves: every stage runs, but the model learns nothing."""
    chosen, sampling = variant(method), SamplingParams(max_new_tokens=16, seed=seed)
    grading = GradingSettings(sandbox=sandbox)
    train = Reinforce(
        architecture=architecture,
        steps=2,
        seed=seed,
        loop=chosen.loop(LoopSettings(prompts_per_step=4, samples_per_prompt=2)),
        objective=chosen.objective,
        rewards=chosen.rewards(16),
        schedule=Schedule(lr=1e-5, warmup_steps=0, style="linear", final_factor=0.0),
        parallel=parallel,
        context_length=256,
        max_new_tokens=16,
        evaluate_every=2,
        evaluation_problems=4,
        checkpoint_every=0,
        slots=16,
        grading=grading,
    )
    everything = {domain: [0, 2] for domain in MC}
    return RLStages(
        prompts=CheckPrompts(domains=list(MC), grading=grading),
        filter=Difficulty(samples=2, sampling=sampling, limit=8, slots=16, grading=grading),
        mix=PromptMix(domains=list(MC), ranges=everything, seed=seed),
        tracked=_tracked_prompts(MC, 4, seed),
        train=train,
    )


def add_reinforcement(
    graph: Graph,
    stages: RLStages,
    *,
    starts: Sequence[tuple[Node, Callable[[], Architecture]]],
    corpus: Node,
    tokenizer: Node,
) -> dict[str, Node]:
    """Add a run `rl_NAME` from each starting model, all with the prompts that the first of these models can solve.

    Args:
        starts: the starting models, each with a function that returns its architecture; overrides can change that, so
            the function is called again after them.

    Returns:
        the new nodes by name.
    """
    model = starts[0][0]
    prompts = graph.add("prompts", stages.prompts, corpus=corpus)
    difficulty = graph.add("difficulty", stages.filter, model=model, tokenizer=tokenizer, prompts=prompts)
    mix = graph.add("mix", stages.mix, difficulty=difficulty)
    tracked = graph.add("followed", stages.tracked, difficulty=difficulty)
    nodes = [prompts, difficulty, mix, tracked]
    for start, architecture in starts:
        run = graph.add(
            f"rl_{start.name}",
            stages.train,
            partial(_of_model, architecture),
            model=start,
            tokenizer=tokenizer,
            prompts=mix,
            corpus=corpus,
            tracked=tracked,
        )
        nodes.append(run)
        if start is model:
            nodes.append(graph.add("frontier", Frontier(), rl=run, difficulty=difficulty))
    return {node.name: node for node in nodes}


def add_study_reinforcement(
    graph: Graph, stages: RLStages, inputs: StudyInputs, *, midtrain: Node, trained: Node
) -> Node:
    """Add runs from the last trained model and from the imported one; returns the model of the first run."""
    starts = [
        (trained, partial(trained_architecture, trained)),
        (inputs.imported, partial(initial_architecture, midtrain)),
    ]
    added = add_reinforcement(graph, stages, starts=starts, corpus=inputs.corpus, tokenizer=inputs.tokenizer)
    return added[f"rl_{trained.name}"]


def _of_model(architecture: Callable[[], Architecture], train: Reinforce) -> Reinforce:
    """`train` for a model of this architecture, limited to its positions: Nemotron-H is published with 8,192."""
    initial = architecture()
    return replace(
        train,
        architecture=initial,
        context_length=min(train.context_length, initial.max_position_embeddings),
    )


def _tracked_prompts(domains: list[str], limit: int, seed: int) -> PromptMix:
    """Prompts with at most one right answer."""
    return PromptMix(
        domains=list(domains), ranges={domain: [0, 1] for domain in domains}, limit=limit, seed=seed
    )


def _prompts_path(path: str) -> str:
    if not path or not Path(path).exists():
        raise ConfigError(
            f"prompts={path}: rl=true needs an existing file or folder of JSON lines with prompts (docs/rl.md); or try "
            "the recipe with --tiny"
        )
    return path
