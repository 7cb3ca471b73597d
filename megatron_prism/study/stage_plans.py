"""What the planner says about every stage of a recipe's graph: memory, time and disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_prism.analysis.stage import AnalysisStage
from megatron_prism.analysis.stages.landscape import AnalyzeLandscape
from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.evaluation.harness.stage import Harness
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suites.stage import BenchmarkFiles
from megatron_prism.merging.stage import Merge
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.node import Node
from megatron_prism.pipeline.stage import Stage
from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.memory import training_memory
from megatron_prism.planning.parameters import count_parameters
from megatron_prism.planning.sampling_time import Answers, sampling_seconds
from megatron_prism.planning.search import Found, describe_layout
from megatron_prism.planning.stage_plan import StagePlan
from megatron_prism.planning.step_time import step_time
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl import planned as rl_planned
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.memory import reinforcement_memory
from megatron_prism.rl.planned import Lengths
from megatron_prism.rl.stage import Reinforce
from megatron_prism.study.registry import Recipe
from megatron_prism.training import planned as train_planned
from megatron_prism.training.stage import Train

# Bytes of a weight in a model folder; of the optimizer's state in a checkpoint to resume from.
WEIGHT, STATE = 2, 12
# Assumptions: bytes of text per token; tokens per second of one tokenizing process (HF tokenizers, encode_batch: 1.49
# million, published by gigatoken); prompts of the paper's pools (294,000 + 100,000 + 142,000, its Table 10).
TEXT_PER_TOKEN, TOKENIZER_SPEED, PROMPT_POOL = 4.2, 1.49e6, 536_000
# Tokens of a RULER answer: the most that its tasks ask for.
RULER_ANSWER = 128


@dataclass(frozen=True)
class Setting:
    """What the plan assumes besides the recipe.

    Attributes:
        gpus: of every stage that trains, whose layout is then searched for; None: the stage's own layout.
        disk: bytes per second of the shared file system.
        lengths: mean tokens of prompts and answers.
        processes: that tokenize.
    """

    gpu: GpuProfile
    gpus: int | None = None
    disk: float = 2e9
    lengths: Lengths = field(default_factory=Lengths)
    processes: int = 16


def nodes_on_paper(recipe: Recipe, values: Mapping[str, Any], target: str | None = None) -> list[Node]:
    """All stages of a recipe; folders that a real run needs need not exist.

    Raises:
        ConfigError: for an unknown key or stage, or a value that is not allowed.
    """
    graph = recipe.graph(values, target, planned=True)
    if target is not None:
        graph.node(target)
    return list(graph.nodes.values())


def plan_stages(nodes: Iterable[Node], setting: Setting) -> tuple[list[StagePlan], dict[str, Found]]:
    """The plan of each stage, in order, and the searches by stage name."""
    chosen = list(nodes)
    trained = [node.stage for node in chosen if isinstance(node.stage, Train)]
    tokens = sum(_tokens(stage) for stage in trained)
    architecture = trained[0].architecture if trained else None
    plans, searches = [], {}
    for node in chosen:
        stage = node.stage
        if isinstance(stage, Train | Reinforce) and setting.gpus is not None:
            found = searches[node.name] = _search(stage, setting.gpus, setting)
            if not found.ranked:
                plans.append(_nothing_fits(node, setting.gpus, found))
                continue
            option = found.ranked[0].option
            if isinstance(stage, Train):
                stage = train_planned.with_option(stage, option)
            else:
                stage = rl_planned.with_option(stage, option)
        if isinstance(stage, Train):
            plans.append(_train(node.name, stage, setting))
        elif isinstance(stage, Reinforce):
            plans.append(_reinforce(node.name, stage, setting))
        else:
            plans.append(_other(node, architecture, tokens, setting))
    return plans, searches


def _search(stage: Train | Reinforce, gpus: int, setting: Setting) -> Found:
    if isinstance(stage, Train):
        return train_planned.search_train(stage, gpus, setting.gpu)
    return rl_planned.search_reinforcement(stage, gpus, setting.gpu, setting.lengths)


def _nothing_fits(node: Node, gpus: int, found: Found) -> StagePlan:
    least = "" if found.smallest is None else f"; the least is {found.smallest / 1e9:.1f} GB per GPU"
    return StagePlan(
        node.name, node.stage.kind, gpus, "none", remarks=[f"no layout of {gpus} GPUs is possible{least}"]
    )


def _tokens(stage: Train) -> float:
    return float(stage.batch.samples(stage.steps) * stage.batch.sequence_length)


def _train(name: str, stage: Train, setting: Setting) -> StagePlan:
    gpu, layout = setting.gpu, stage.layout
    job = train_planned.train_job(stage, gpu)
    step = step_time(job)
    count = count_parameters(job.architecture)
    saves = (stage.steps // stage.checkpoint_every if stage.checkpoint_every else 0) + 1
    checkpoint = count * (WEIGHT + STATE)
    kept = _kept_bytes(stage, count * WEIGHT, checkpoint)
    # A step of validation is a forward pass: a third.
    rounds = (stage.steps // stage.validate_every if stage.validate_every else 0) + 1
    plan = StagePlan(
        name,
        stage.kind,
        layout.world_size,
        f"{describe_layout(layout)}, recompute {stage.recompute}, micro-batch {stage.batch.micro_batch_size}",
        training_memory(job.architecture, layout, job.work),
        step,
        stage.steps,
        parts={
            "steps": _tokens(stage) / step.tokens_per_second / step.gpus,
            "validation": rounds * stage.validation_batches * step.seconds / 3,
            "checkpoints": saves * checkpoint / setting.disk,
        },
        disk=kept,
        disk_peak=kept + stage.checkpoints.keep_last * checkpoint,
    )
    return _with_fit(plan, gpu)


def _reinforce(name: str, stage: Reinforce, setting: Setting) -> StagePlan:
    gpu, layout = setting.gpu, stage.layout
    step = rl_planned.reinforcement_step(stage, gpu, setting.lengths)
    count = count_parameters(stage.architecture)
    checkpoint = count * (WEIGHT + STATE + (WEIGHT if stage.objective.kl_coefficient else 0))
    saves = (stage.steps // stage.checkpoint_every if stage.checkpoint_every else 0) + 1
    kept = _kept_bytes(stage, count * WEIGHT, checkpoint)
    plan = StagePlan(
        name,
        stage.kind,
        layout.world_size,
        f"{describe_layout(layout)}, recompute {stage.recompute}",
        reinforcement_memory(stage),
        step,
        stage.steps,
        parts={"steps": stage.steps * step.seconds, "checkpoints": saves * checkpoint / setting.disk},
        disk=kept,
        disk_peak=kept + stage.checkpoints.keep_last * checkpoint,
        remarks=[f"answers of {setting.lengths.answer} tokens on average; without evaluations"],
    )
    return _with_fit(plan, gpu)


def _kept_bytes(stage: Train | Reinforce, model: float, checkpoint: float) -> float:
    """Disk of what stays: the model, and the checkpoints and weights that are kept for good."""
    kept = stage.checkpoints
    every = ((kept.keep_every, checkpoint), (kept.weights_every, model))
    return model + sum(stage.steps // steps * size for steps, size in every if steps)


def _with_fit(plan: StagePlan, gpu: GpuProfile) -> StagePlan:
    if not plan.fits(gpu):
        plan.remarks.append("does not fit: less than 8 % of the memory would be free")
    return plan


def _other(node: Node, architecture: Architecture | None, tokens: float, setting: Setting) -> StagePlan:
    """A stage that does not train."""
    stage = node.stage
    plan = StagePlan(node.name, stage.kind)
    model = WEIGHT * count_parameters(architecture) if architecture else 0
    if isinstance(stage, ImportHF | ExportHF):
        plan.parts, plan.disk = {"copying": 2 * model / setting.disk}, model
    elif isinstance(stage, Merge):
        plan.parts, plan.disk = {"copying": (len(node.inputs) + 1) * model / setting.disk}, model
    elif isinstance(stage, TokenizeCorpus):
        width = 4 if architecture is None or architecture.vocab_size > 65_536 else 2
        read = tokens * TEXT_PER_TOKEN / setting.disk
        plan.parts = {"tokenizing": max(read, tokens / TOKENIZER_SPEED / setting.processes)}
        plan.disk = tokens * width
        plan.remarks.append(
            f"the {tokens / 1e9:.1f}B tokens that are trained on, {setting.processes} processes"
        )
    elif isinstance(stage, PackDocuments):
        plan.parts = {"lengths": 0.0}
    elif architecture is not None and isinstance(stage, RulerEvaluate):
        _ruler(plan, stage, architecture, setting)
    elif architecture is not None and isinstance(stage, Difficulty):
        _difficulty(plan, stage, architecture, setting)
    elif architecture is not None and isinstance(stage, Evaluate):
        _evaluation(plan, stage, node.inputs["corpus"].stage, architecture, setting=setting)
    elif isinstance(stage, Harness | AnalysisStage | AnalyzeLandscape):
        plan.remarks.append("time is not estimated")
    plan.disk_peak = plan.disk
    return plan


def _ruler(plan: StagePlan, stage: RulerEvaluate, architecture: Architecture, setting: Setting) -> None:
    """Each sample is a prompt of its own; one GPU."""
    plan.gpus, plan.layout = 1, "one GPU"
    samples = stage.samples * len(stage.tasks)
    for length in stage.lengths:
        slots = max(1, stage.batch_tokens // length)
        answers = Answers(samples, samples, length, RULER_ANSWER, RULER_ANSWER, slots)
        found = sampling_seconds(architecture, ParallelConfig(), answers, setting.gpu)
        plan.parts[f"{length} tokens"] = sum(found.values())


def _evaluation(
    plan: StagePlan, stage: Evaluate, corpus: Stage, architecture: Architecture, *, setting: Setting
) -> None:
    """All benchmarks whose number of problems is known, on one GPU."""
    if not isinstance(corpus, BenchmarkFiles) or corpus.planned:
        plan.remarks.append("time is not estimated, because the number of problems is not known")
        return
    plan.gpus, plan.layout = 1, "one GPU"
    lengths, total = setting.lengths, 0
    for benchmark in corpus.definitions():
        problems = min(benchmark.problems or 0, stage.limit or benchmark.problems or 0)
        count = problems * (stage.samples_per_problem or benchmark.samples)
        longest = min(
            stage.sampling.max_new_tokens or benchmark.sampling().max_new_tokens,
            architecture.max_position_embeddings,
        )
        answer = min(lengths.answer, longest)
        answers = Answers(count, problems, lengths.prompt, answer, longest, stage.batch_size)
        found = sampling_seconds(architecture, ParallelConfig(), answers, setting.gpu)
        plan.parts[benchmark.name] = sum(found.values())
        total += count
    plan.remarks.append(f"{total:,} answers of {lengths.answer:,} tokens on average, without grading")


def _difficulty(plan: StagePlan, stage: Difficulty, architecture: Architecture, setting: Setting) -> None:
    """All prompts on one GPU; a pool of engines divides that."""
    plan.gpus, plan.layout = 1, "one GPU"
    prompts = PROMPT_POOL if stage.limit is None else 3 * stage.limit
    lengths = setting.lengths
    answers = Answers(
        prompts * stage.samples,
        prompts,
        lengths.prompt,
        min(lengths.answer, stage.sampling.max_new_tokens),
        stage.sampling.max_new_tokens,
        stage.slots,
    )
    plan.parts = sampling_seconds(architecture, ParallelConfig(), answers, setting.gpu)
    plan.remarks.append(f"{prompts:,} prompts; a server (engine openai) shares them between GPUs")
