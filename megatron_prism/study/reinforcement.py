"""The reinforcement learning of a recipe: prompts, difficulty filter, mix, training, frontier.

It follows sections 9.1 and 15 and Table 21 of the paper. Where the paper is not specific, a comment states our
assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.pipeline.placeholder import is_placeholder, needed
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.check_prompts import CheckPrompts
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.frontier import Frontier
from megatron_prism.rl.mix import BALANCED, MC, MCS, UNBALANCED, PromptMix
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.rl.stage import Reinforce
from megatron_prism.rl.variants import variant
from megatron_prism.study.midtraining import StudyInputs, initial_architecture, trained_architecture
from megatron_prism.training.schedule import Schedule
from megatron_prism.verification.sandbox.isolation import STRONG
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
MIXES = {"mc": MC, "mcs": MCS}
MIDTRAIN, EXTEND, BASE, BOTH = "midtrain", "extend", "base", "both"
STARTS = (BOTH, MIDTRAIN, EXTEND, BASE)


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


@dataclass(frozen=True)
class RLChoice:
    """What a user chooses about reinforcement learning.

    Attributes:
        prompts: a file of JSON lines or a folder of such files.
        mix: the domains of the prompts, a key of `MIXES`.
        balance: 'unbalanced', or 'balanced' with as many prompts in every domain (rl/mix.py).
        start: the models to start from, one of `STARTS`; 'both' are the last trained model and the base.
        method: see rl/variants.py.
    """

    prompts: str = ""
    mix: str = "mcs"
    balance: str = UNBALANCED
    start: str = BOTH
    method: str = "paper"
    sandbox: str = STRONG

    def __post_init__(self) -> None:
        one_of(self.mix, MIXES, "rl_mix")
        one_of(self.balance, (UNBALANCED, BALANCED), "rl_balance")
        one_of(self.start, STARTS, "rl_start")

    @property
    def domains(self) -> list[str]:
        return list(MIXES[self.mix])


def paper_rl_stages(architecture: Architecture, choice: RLChoice, seed: int) -> RLStages:
    """Table 21: 1,000 steps of 64 prompts, 16 answers each, 16,384 tokens of context."""
    method, sandbox = choice.method, choice.sandbox
    chosen, grading = variant(method), GradingSettings(sandbox=sandbox)
    settings = LoopSettings(reference_interval=REFERENCE_INTERVAL)
    context = min(CONTEXT, architecture.max_position_embeddings)
    train = Reinforce(
        architecture=architecture,
        seed=seed,
        dtype="bf16",
        loop=chosen.loop(settings),
        objective=chosen.objective,
        rewards=chosen.rewards(CONTEXT),
        context_length=context,
        max_new_tokens=context,
        slots=SLOTS,
        grading=grading,
    )
    sampling = SamplingParams(max_new_tokens=train.max_new_tokens, seed=seed)
    return RLStages(
        prompts=CheckPrompts(files=[_prompts_path(choice.prompts)], grading=grading),
        filter=Difficulty(samples=ANSWERS, sampling=sampling, slots=SLOTS, grading=grading),
        mix=PromptMix(mix=choice.balance, domains=choice.domains, seed=seed),
        tracked=_tracked_prompts(choice.domains, TRACKED_PROMPTS, seed),
        train=train,
    )


def tiny_rl_stages(
    architecture: Architecture, choice: RLChoice, parallel: ParallelConfig, seed: int
) -> RLStages:
    """Two steps on prompts that a random model never solves: every stage runs, but the model learns nothing."""
    chosen, sampling = variant(choice.method), SamplingParams(max_new_tokens=16, seed=seed)
    grading = GradingSettings(sandbox=choice.sandbox)
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
    everything = {domain: [0, 2] for domain in choice.domains}
    return RLStages(
        prompts=CheckPrompts(domains=choice.domains, grading=grading),
        filter=Difficulty(samples=2, sampling=sampling, limit=8, slots=16, grading=grading),
        mix=PromptMix(mix=choice.balance, domains=choice.domains, ranges=everything, seed=seed),
        tracked=_tracked_prompts(choice.domains, 4, seed),
        train=train,
    )


def add_reinforcement(
    graph: Graph,
    stages: RLStages,
    *,
    starts: Sequence[tuple[Node, Callable[[], Architecture]]],
    corpus: Node,
    tokenizer: Node,
    judge: Node | None = None,
    implied: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> dict[str, Node]:
    """Add a run `rl_NAME` from each starting model, all with the prompts that one model can sometimes solve.

    Args:
        starts: the starting models, each with a function that returns its architecture; overrides can change that, so
            the function is called again after them.
        judge: the model that solves; by default the first starting model.
        implied: of the runs, see `Graph.add`.

    Returns:
        the new nodes by name.
    """
    model = judge or starts[0][0]
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
            implied,
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
    graph: Graph,
    stages: RLStages,
    inputs: StudyInputs,
    *,
    midtrain: Node,
    trained: Node,
    start: str,
    implied: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> dict[str, Node]:
    """Add the runs of reinforcement learning; returns them by name, the one whose model is exported first.

    Args:
        trained: the last trained model, which is `midtrain` or an extension of it.
        start: the models to start from, one of `STARTS`.
    """
    of_base = (inputs.imported, partial(initial_architecture, midtrain))
    last = (trained, partial(trained_architecture, trained))
    if start == EXTEND and trained is midtrain:
        raise ConfigError(f"rl_start={start}: there is no extended model; set long_context=true")
    starts = {
        MIDTRAIN: [(midtrain, partial(trained_architecture, midtrain))],
        EXTEND: [last],
        BASE: [of_base],
        BOTH: [last, of_base],
    }[start]
    # As in the paper, a trained model filters, also for runs from the base.
    judge = trained if start == BASE else starts[0][0]
    added = add_reinforcement(
        graph,
        stages,
        starts=starts,
        corpus=inputs.corpus,
        tokenizer=inputs.tokenizer,
        judge=judge,
        implied=implied,
    )
    return {name: node for name, node in added.items() if isinstance(node.stage, Reinforce)}


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
    named = f"prompts={path}" if path else "prompts"
    wanted = "rl=true needs an existing file or folder of JSON lines with prompts (docs/rl.md)"
    message = f"{named}: {wanted}; or try the recipe with --tiny"
    given = needed("prompts", path, message)
    if not is_placeholder(given) and not Path(given).exists():
        raise ConfigError(message)
    return given
