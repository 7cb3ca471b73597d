"""The body of the `rl` stage, inside its process groups: start or resume, step, evaluate, save."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_prism.conversion.side_files.carry import carry_files
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, HF_FILES
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.platform.console import get_logger
from megatron_prism.platform.hardware import peak_memory_bytes
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.evaluation_sets import EvaluationSet, evaluation_sets
from megatron_prism.rl.loop import Loop, StepReport
from megatron_prism.rl.policy import BatchShape, Policy
from megatron_prism.rl.prompts import check_lengths, count_by_domain, load_prompts
from megatron_prism.rl.record import (
    ANSWERS,
    RLLog,
    evaluations,
    read_metrics,
    steps_without_signal,
    write_answers,
)
from megatron_prism.rl.rollout import Rollouts, check_kinds
from megatron_prism.rl.rollout_engine import RolloutEngine, open_rollout_engine
from megatron_prism.training.checkpoint import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from megatron_prism.verification.grade import grader_versions
from megatron_prism.verification.workers import GradingPool

REFERENCE = "reference"
CHECKPOINTS = "checkpoints"

log = get_logger(__name__)


def run(
    config: ReinforceConfig, inputs: Mapping[str, Artifact], out: Path, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Everything from the first weights to the metrics of the receipt."""
    everything = load_prompts(inputs["prompts"].path)
    kinds = check_kinds(everything, config.sandbox)
    ids = tokenizer.encode_batch([problem.prompt for problem in everything])
    prompt_ids = {problem.id: each for problem, each in zip(everything, ids, strict=True)}
    problems, too_long = check_lengths(everything, [len(each) for each in ids], config.context_length)
    policy = _policy(config, tokenizer)
    state, start = _start(config, policy, inputs["model"].path, out)
    hf_files = start / HF_FILES if (start / HF_FILES).is_dir() else None
    with ExitStack() as stack:
        sampler = stack.enter_context(
            open_rollout_engine(config, policy, tokenizer, inputs["tokenizer"].path, hf_files, out)
        )
        rollouts = _rollouts(config, sampler, stack)
        loop = Loop(
            policy,
            rollouts,
            problems,
            [prompt_ids[problem.id] for problem in problems],
            config.loop,
            config.max_new_tokens,
            config.seed,
        )
        metrics = _train(config, loop, state, evaluation_sets(config, inputs), out)
    if dist.get_rank() == 0:
        config.architecture.save(out / ARCHITECTURE)
        if hf_files:
            for remark in carry_files(hf_files, out / HF_FILES):
                log.warning(remark)
    dist.barrier()
    return metrics | {
        "prompts": count_by_domain(problems),
        "too_long": too_long,
        "grader": grader_versions(kinds, config.sandbox),
        "peak_memory_gib": round(peak_memory_bytes() / 2**30, 3),
    }


def _policy(config: ReinforceConfig, tokenizer: Tokenizer) -> Policy:
    return Policy(
        config.architecture,
        config.parallel,
        BatchShape(config.context_length, config.packing, config.micro_batch_size),
        config.optimizer,
        config.objective,
        config.gate,
        tokenizer.vocab_size,
        torch.bfloat16 if config.dtype == "bf16" else torch.float32,
        config.recompute,
    )


def _start(config: ReinforceConfig, policy: Policy, start: Path, out: Path) -> tuple[TrainingState, Path]:
    """Weights and position of the last checkpoint, or the given model at step 0."""
    trainer = policy.trainer
    resume = latest_checkpoint(out / CHECKPOINTS)
    if resume is not None:
        state = load_checkpoint(resume, trainer.models, trainer.optimizer)
        if policy.reference:
            load_weights(policy.reference, resume / REFERENCE)
        return state, start
    config.architecture.require_same(Architecture.load(start / ARCHITECTURE), str(start))
    load_weights(trainer.models, start / CHECKPOINT)
    trainer.optimizer.reload_model_params()
    policy.take_reference()
    return TrainingState(), start


def _rollouts(config: ReinforceConfig, sampler: RolloutEngine, stack: ExitStack) -> Rollouts:
    from megatron.core import parallel_state

    pool = None
    # Ranks of one model sample the same texts together; replicas, over data and context parallelism, share the prompts.
    leads = (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
    )
    if leads:
        pool = stack.enter_context(
            GradingPool(config.grading_workers, config.grading_timeout_seconds, config.grading_memory_mib)
        )
    sampling = SamplingParams(
        max_new_tokens=config.max_new_tokens, stop=list(config.stop) or None, seed=config.seed
    )
    share = (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
    return Rollouts(
        sampler.engine, pool, sampling, config.rewards, share, config.sandbox, sampler.push_weights
    )


def _train(
    config: ReinforceConfig, loop: Loop, state: TrainingState, sets: Sequence[EvaluationSet], out: Path
) -> dict[str, Any]:
    trainer, rank_zero = loop.policy.trainer, dist.get_rank() == 0
    without_signal = steps_without_signal(out, state.step)
    # The log cuts off what came after the checkpoint; by then everyone has read.
    dist.barrier()
    record = RLLog(out, config.steps, state.step) if rank_zero else None

    def evaluate(step: int) -> None:
        for each in sets:
            each.evaluate(loop.rollouts, step, record, out)

    def save(folder: Path) -> None:
        beside = {REFERENCE: loop.policy.reference} if loop.policy.reference else {}
        save_checkpoint(folder, trainer.models, trainer.optimizer, state, beside)

    if state.step == 0:
        evaluate(0)
    report: StepReport | None = None
    given_up = False
    began = time.perf_counter()
    while state.step < config.steps and not given_up:
        lr = config.schedule.at(state.step, config.steps)
        report = loop.step(state.step + 1, state.consumed_samples, lr)
        state.step, state.consumed_samples = state.step + 1, report.consumed_prompts
        if record:
            record.step(state.step, report, lr)
            if config.answers_every and state.step % config.answers_every == 0:
                write_answers(out / ANSWERS, state.step, report.groups)
        without_signal = 0 if report.kept else without_signal + 1
        given_up = 0 < config.give_up_after <= without_signal
        done = given_up or state.step == config.steps
        if sets and (done or (config.evaluate_every and state.step % config.evaluate_every == 0)):
            evaluate(state.step)
        if config.checkpoint_every and state.step % config.checkpoint_every == 0 and not done:
            save(out / CHECKPOINTS / f"step_{state.step:07d}")
    if given_up:
        log.warning(
            "step %d: all groups had equal rewards for %d steps; stopping (give_up_after)",
            *(state.step, without_signal),
        )
    save(out / CHECKPOINT)
    rates_of_sets: dict[str, Any] = {}
    if record:
        record.close()
        lines = read_metrics(out)
        for each in sets:
            rates = evaluations(lines, each.name)
            rates_of_sets[each.name] = {"before": rates[min(rates)], "after": rates[max(rates)]}
        if not config.keep_checkpoints:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return {
        "steps": state.step,
        "given_up": given_up,
        "consumed_prompts": state.consumed_samples,
        **rates_of_sets,
        "last_step": report.record() if report else {},
        "seconds": round(time.perf_counter() - began, 1),
    }
