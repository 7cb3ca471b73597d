"""The reinforcement learning branch of a recipe: prompts, difficulty filter, mix, training, frontier.

Sections 9.1 and 15 and Table 21 of the paper. Where the paper is not specific, a comment says what is assumed.
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
from megatron_prism.study.midtraining import Start, initial_architecture, trained_architecture
from megatron_prism.training.schedule import Schedule
from megatron_prism.verification.settings import GradingSettings

# Section 9.1: math with exactly 1 right answer of 16, code and science with at least one.
ANSWERS = 16
# Table 21; a model's own positions may end before.
CONTEXT = 16_384
# Assumption: the paper does not say how many prompts figure 10 follows.
FOLLOWED = 256
# Assumption: Table 21 names TR-DPO's soft update and neither its share nor its interval; 0.6 is open-instruct's share.
REFERENCE_INTERVAL = 100
# Keys and values of that many texts of 16,384 tokens share a GPU with the model, its optimizer and its reference.
SLOTS = 16


@dataclass(frozen=True)
class Branch:
    """The stages of the branch, to be added to a graph.

    Attributes:
        filter: counts right answers of the mid-trained model.
        mix: chooses prompts by these counts.
        followed: chooses the prompts whose pass rate the frontier shows.
        train: the run; every start gets one like it.
    """

    prompts: CheckPrompts
    filter: Difficulty
    mix: PromptMix
    followed: PromptMix
    train: Reinforce


def paper_branch(
    architecture: Architecture, parallel: ParallelConfig, seed: int, prompts: str, method: str, sandbox: str
) -> Branch:
    """Table 21 on the unbalanced MCS mix: 1,000 steps of 64 prompts with 16 answers each, 16,384 tokens of context."""
    chosen, grading = variant(method), GradingSettings(sandbox=sandbox)
    settings = LoopSettings(reference_interval=REFERENCE_INTERVAL)
    train = Reinforce(
        architecture=architecture,
        seed=seed,
        dtype="bf16",
        loop=chosen.loop(settings),
        objective=chosen.objective,
        rewards=chosen.rewards(CONTEXT),
        parallel=parallel,
        context_length=min(CONTEXT, architecture.max_position_embeddings),
        slots=SLOTS,
        grading=grading,
    )
    sampling = SamplingParams(max_new_tokens=train.max_new_tokens, seed=seed)
    return Branch(
        prompts=CheckPrompts(files=[_given_prompts(prompts)], grading=grading),
        filter=Difficulty(samples=ANSWERS, sampling=sampling, slots=SLOTS, grading=grading),
        mix=PromptMix(domains=list(MCS), seed=seed),
        followed=_followed(MCS, FOLLOWED, seed),
        train=train,
    )


def tiny_branch(
    architecture: Architecture, parallel: ParallelConfig, seed: int, method: str, sandbox: str
) -> Branch:
    """Two steps on prompts that a random model never solves: every stage runs, and nothing is learned."""
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
    return Branch(
        prompts=CheckPrompts(domains=list(MC), grading=grading),
        filter=Difficulty(samples=2, sampling=sampling, limit=8, slots=16, grading=grading),
        mix=PromptMix(domains=list(MC), ranges=everything, seed=seed),
        followed=_followed(MC, 4, seed),
        train=train,
    )


def add_reinforcement(
    graph: Graph,
    branch: Branch,
    starts: Sequence[tuple[Node, Callable[[], Architecture]]],
    corpus: Node,
    tokenizer: Node,
) -> dict[str, Node]:
    """Add the branch: a run `rl_NAME` from each start, all on the prompts that the model of the first found solvable.

    Args:
        starts: each with a function for the architecture of its model, which is called again after overrides.

    Returns:
        the new nodes by name.
    """
    model = starts[0][0]
    prompts = graph.add("prompts", branch.prompts, corpus=corpus)
    difficulty = graph.add("difficulty", branch.filter, model=model, tokenizer=tokenizer, prompts=prompts)
    mix = graph.add("mix", branch.mix, difficulty=difficulty)
    followed = graph.add("followed", branch.followed, difficulty=difficulty)
    nodes = [prompts, difficulty, mix, followed]
    for start, architecture in starts:
        run = graph.add(
            f"rl_{start.name}",
            branch.train,
            partial(_of_model, architecture),
            model=start,
            tokenizer=tokenizer,
            prompts=mix,
            corpus=corpus,
            tracked=followed,
        )
        nodes.append(run)
        if start is model:
            nodes.append(graph.add("frontier", Frontier(), rl=run, difficulty=difficulty))
    return {node.name: node for node in nodes}


def add_study_reinforcement(
    graph: Graph, branch: Branch, start: Start, midtrain: Node, trained: Node
) -> Node:
    """The branch from the model that was trained last and from the imported one; returns the model it ends with."""
    starts = [
        (trained, partial(trained_architecture, trained)),
        (start.imported, partial(initial_architecture, midtrain)),
    ]
    added = add_reinforcement(graph, branch, starts, start.corpus, start.tokenizer)
    return added[f"rl_{trained.name}"]


def _of_model(architecture: Callable[[], Architecture], train: Reinforce) -> Reinforce:
    """The run for a model of that architecture, within its positions: Nemotron-H is published with 8,192."""
    found = architecture()
    return replace(
        train,
        architecture=found,
        context_length=min(train.context_length, found.max_position_embeddings),
    )


def _followed(domains: list[str], limit: int, seed: int) -> PromptMix:
    """Prompts with no right answer, or one."""
    return PromptMix(
        domains=list(domains), ranges={domain: [0, 1] for domain in domains}, limit=limit, seed=seed
    )


def _given_prompts(path: str) -> str:
    if not path or not Path(path).exists():
        raise ConfigError(
            f"prompts={path}: name the JSON lines with the prompts for rl=true (docs/rl.md), or try the recipe with "
            "--tiny"
        )
    return path
