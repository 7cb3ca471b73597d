"""The body of the `rl` stage, inside its process groups: start or resume, step, evaluate, save."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megatron_prism.conversion.checkpoint_io import load_weights
from megatron_prism.conversion.model_folder import ARCHITECTURE, CHECKPOINT, HF_FILES
from megatron_prism.conversion.side_files import carry_files
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.platform.console import get_logger
from megatron_prism.platform.hardware import peak_memory_bytes
from megatron_prism.rl.loop import Loop, StepReport
from megatron_prism.rl.policy import BatchShape, Policy
from megatron_prism.rl.prompts import check_lengths, count_by_domain, load_prompts, rates_by_domain
from megatron_prism.rl.record import ANSWERS, RLLog, barren_steps, evaluations, read_metrics, write_answers
from megatron_prism.rl.rollout import Rollouts, check_kinds
from megatron_prism.rl.sampler import TrainingSampler, training_sampler
from megatron_prism.training.checkpoint import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from megatron_prism.verification.grade import grader_versions
from megatron_prism.verification.problems import Problem, load_suite, suite_names
from megatron_prism.verification.workers import GradingPool

if TYPE_CHECKING:
    from megatron_prism.rl.stage import Reinforce

REFERENCE = "reference"
CHECKPOINTS = "checkpoints"

log = get_logger(__name__)


@dataclass(frozen=True)
class Asked:
    """Prompts that are asked again during the run: their name in the metrics, and answers to each."""

    name: str
    problems: Sequence[Problem]
    samples: int


def run(stage: Reinforce, inputs: Mapping[str, Artifact], out: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything from the first weights to the metrics of the receipt."""
    everything = load_prompts(inputs["prompts"].path)
    kinds = check_kinds(everything, stage.sandbox)
    ids = tokenizer.encode_batch([problem.prompt for problem in everything])
    prompt_ids = {problem.id: each for problem, each in zip(everything, ids, strict=True)}
    problems, too_long = check_lengths(everything, [len(each) for each in ids], stage.context_length)
    policy = _policy(stage, tokenizer)
    state, start = _start(stage, policy, inputs["model"].path, out)
    hf_files = start / HF_FILES if (start / HF_FILES).is_dir() else None
    with ExitStack() as stack:
        sampler = stack.enter_context(
            training_sampler(stage, policy, tokenizer, inputs["tokenizer"].path, hf_files, out)
        )
        rollouts = _rollouts(stage, sampler, stack)
        loop = Loop(
            policy,
            rollouts,
            problems,
            [prompt_ids[problem.id] for problem in problems],
            stage.loop,
            stage.max_new_tokens,
            stage.seed,
        )
        metrics = _train(stage, loop, state, _asked(stage, inputs), out)
    if dist.get_rank() == 0:
        stage.architecture.save(out / ARCHITECTURE)
        if hf_files:
            for remark in carry_files(hf_files, out / HF_FILES):
                log.warning(remark)
    dist.barrier()
    return metrics | {
        "prompts": count_by_domain(problems),
        "too_long": too_long,
        "grader": grader_versions(kinds, stage.sandbox),
        "peak_memory_gib": round(peak_memory_bytes() / 2**30, 3),
    }


def _policy(stage: Reinforce, tokenizer: Tokenizer) -> Policy:
    return Policy(
        stage.architecture,
        stage.parallel,
        BatchShape(stage.context_length, stage.packing, stage.micro_batch_size),
        stage.optimizer,
        stage.objective,
        stage.gate,
        tokenizer.vocab_size,
        torch.bfloat16 if stage.dtype == "bf16" else torch.float32,
        stage.recompute,
    )


def _start(stage: Reinforce, policy: Policy, start: Path, out: Path) -> tuple[TrainingState, Path]:
    """Weights and position of the last checkpoint, or the given model at step 0."""
    trainer = policy.trainer
    resume = latest_checkpoint(out / CHECKPOINTS)
    if resume is not None:
        state = load_checkpoint(resume, trainer.models, trainer.optimizer)
        if policy.reference:
            load_weights(policy.reference, resume / REFERENCE)
        return state, start
    stage.architecture.require_same(Architecture.load(start / ARCHITECTURE), str(start))
    load_weights(trainer.models, start / CHECKPOINT)
    trainer.optimizer.reload_model_params()
    policy.take_reference()
    return TrainingState(), start


def _rollouts(stage: Reinforce, sampler: TrainingSampler, stack: ExitStack) -> Rollouts:
    from megatron.core import parallel_state

    pool = None
    # Ranks of one model sample the same texts together; replicas, over data and context parallelism, share the prompts.
    leads = (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
    )
    if leads:
        pool = stack.enter_context(
            GradingPool(stage.grading_workers, stage.grading_timeout_seconds, stage.grading_memory_mib)
        )
    sampling = SamplingParams(
        max_new_tokens=stage.max_new_tokens, stop=list(stage.stop) or None, seed=stage.seed
    )
    share = (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
    return Rollouts(sampler.engine, pool, sampling, stage.rewards, share, stage.sandbox, sampler.push_weights)


def _asked(stage: Reinforce, inputs: Mapping[str, Artifact]) -> list[Asked]:
    asked = []
    if stage.evaluate_every and "corpus" in inputs:
        folder = inputs["corpus"].file("problems")
        names = stage.evaluation_suites or suite_names(folder)
        suites = [load_suite(folder, name, stage.evaluation_problems) for name in names]
        asked.append(Asked("held_out", [p for suite in suites for p in suite], stage.evaluation_samples))
    if stage.evaluate_every and "tracked" in inputs:
        asked.append(Asked("tracked", load_prompts(inputs["tracked"].path), stage.evaluation_samples))
    return asked


def _train(
    stage: Reinforce, loop: Loop, state: TrainingState, asked: Sequence[Asked], out: Path
) -> dict[str, Any]:
    trainer, rank_zero = loop.policy.trainer, dist.get_rank() == 0
    barren = barren_steps(out, state.step)
    # The log cuts off what came after the checkpoint; by then everyone has read.
    dist.barrier()
    record = RLLog(out, stage.steps, state.step) if rank_zero else None

    def evaluate(step: int) -> None:
        for each in asked:
            groups = loop.rollouts.groups(each.problems, each.samples, f"{each.name} {step}")
            if record:
                rates = rates_by_domain(each.problems, [group.pass_rate for group in groups])
                counts = {d: n * each.samples for d, n in count_by_domain(each.problems).items()}
                record.evaluation(step, each.name, rates, counts)
                write_answers(out / each.name, step, groups)

    def save(folder: Path) -> None:
        beside = {REFERENCE: loop.policy.reference} if loop.policy.reference else {}
        save_checkpoint(folder, trainer.models, trainer.optimizer, state, beside)

    if state.step == 0:
        evaluate(0)
    report: StepReport | None = None
    given_up = False
    began = time.perf_counter()
    while state.step < stage.steps and not given_up:
        lr = stage.schedule.at(state.step, stage.steps)
        report = loop.step(state.step + 1, state.consumed_samples, lr)
        state.step, state.consumed_samples = state.step + 1, report.consumed_prompts
        if record:
            record.step(state.step, report, lr)
            if stage.answers_every and state.step % stage.answers_every == 0:
                write_answers(out / ANSWERS, state.step, report.groups)
        barren = 0 if report.kept else barren + 1
        given_up = 0 < stage.give_up_after <= barren
        done = given_up or state.step == stage.steps
        if asked and (done or (stage.evaluate_every and state.step % stage.evaluate_every == 0)):
            evaluate(state.step)
        if stage.checkpoint_every and state.step % stage.checkpoint_every == 0 and not done:
            save(out / CHECKPOINTS / f"step_{state.step:07d}")
    if given_up:
        log.warning(
            "step %d: no group had anything to teach for %d steps: there is nothing to learn from, and the run ends "
            "(give_up_after)",
            *(state.step, barren),
        )
    save(out / CHECKPOINT)
    asked_rates: dict[str, Any] = {}
    if record:
        record.close()
        lines = read_metrics(out)
        for each in asked:
            rates = evaluations(lines, each.name)
            asked_rates[each.name] = {"before": rates[min(rates)], "after": rates[max(rates)]}
        if not stage.keep_checkpoints:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return {
        "steps": state.step,
        "given_up": given_up,
        "consumed_prompts": state.consumed_samples,
        **asked_rates,
        "last_step": report.record() if report else {},
        "seconds": round(time.perf_counter() - began, 1),
    }
