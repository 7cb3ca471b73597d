"""The body of the `rl` stage, inside its process groups: build, resume or load, step, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import TrainingError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.platform.console import get_logger, is_rank_zero
from megatron_prism.platform.hardware import peak_memory_bytes
from megatron_prism.platform.profiling import profiled
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.evaluation_sets import EvaluationSet, evaluation_sets
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
from megatron_prism.rl.rollout import Rollouts
from megatron_prism.rl.rollout_engine import RolloutEngine, open_rollout_engine
from megatron_prism.rl.step import RLTrainer
from megatron_prism.rl.step_report import StepReport
from megatron_prism.training.checkpoint import TrainingState
from megatron_prism.training.guard import Guard
from megatron_prism.training.loop import run_steps
from megatron_prism.training.run_folder import RunFolder, hf_files
from megatron_prism.training.stopping import Stopping
from megatron_prism.training.trackers import open_trackers
from megatron_prism.verification.grade import grader_versions

REFERENCE = "reference"

log = get_logger(__name__)


def reinforce(
    config: ReinforceConfig,
    inputs: Mapping[str, Artifact],
    out: Path,
    tokenizer: Tokenizer,
    *,
    stopping: Stopping,
) -> dict[str, Any]:
    """Train to the last step and leave the model in `out`; returns the metrics of the receipt."""
    loaded = load_prompts(inputs["prompts"].path)
    kinds = config.grading.check_kinds(loaded)
    ids = tokenizer.encode_batch([problem.prompt for problem in loaded])
    prompt_ids = {problem.id: each for problem, each in zip(loaded, ids, strict=True)}
    problems, too_long = check_lengths(loaded, [len(each) for each in ids], config.context_length)
    config.logging.check_installed()
    policy = build_policy(config, tokenizer.vocab_size)
    start = inputs["model"].path
    folder = RunFolder(
        out,
        policy.trainer,
        config.checkpoints,
        steps=config.steps,
        start=start,
        further_models={REFERENCE: policy.reference} if policy.reference else {},
    )
    state = _first_state(config, policy, folder, start)
    with ExitStack() as stack:
        engine = stack.enter_context(
            open_rollout_engine(
                config,
                policy,
                tokenizer=tokenizer,
                tokenizer_folder=inputs["tokenizer"].path,
                hf_files=hf_files(start),
                out=out,
            )
        )
        trainer = RLTrainer(
            policy,
            _rollouts(config, engine, stack),
            problems=problems,
            prompt_ids=[prompt_ids[problem.id] for problem in problems],
            settings=config.loop,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            guard=Guard(config.guard, state.guard),
        )
        run = _RLRun(config, trainer, evaluation_sets(config, inputs), state, folder=folder)
        if state.step == 0:
            run.evaluate()
        began = time.perf_counter()
        if not folder.finished:
            with folder.stopped_after_saving():
                run_steps(
                    state,
                    config.steps,
                    take_step=run.step,
                    evaluate=run.evaluate,
                    evaluate_every=config.evaluate_every,
                    save=run.save,
                    checkpoint_every=config.checkpoint_every,
                    stopping=stopping,
                    after_step=lambda: folder.after_step(state),
                )
        folder.save_model(state)
        run.evaluate()
        metrics = run.finish() | {"seconds": round(time.perf_counter() - began, 1)}
    dist.barrier()
    return metrics | {
        "prompts": count_by_domain(problems),
        "too_long": too_long,
        "grader": grader_versions(kinds, config.grading.sandbox),
        "peak_memory_gib": round(peak_memory_bytes() / 2**30, 3),
    }


def build_policy(config: ReinforceConfig, vocabulary: int) -> Policy:
    """This rank's part of the trained model and its reference; needs a running session.

    Args:
        vocabulary: size of the tokenizer's vocabulary.
    """
    return Policy(
        config.architecture,
        parallel=config.parallel,
        shape=BatchShape(config.context_length, config.packing, config.micro_batch_size),
        optimizer=config.optimizer,
        objective=config.objective,
        gate_settings=config.gate,
        vocabulary=vocabulary,
        dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float32,
        recompute=config.recompute,
        kernels=replace(config.kernels, overlap_param_gather=False),
        precision=config.precision,
        megatron=config.megatron,
    )


def _first_state(config: ReinforceConfig, policy: Policy, folder: RunFolder, start: Path) -> TrainingState:
    """The state after the newest checkpoint, or step 0 with the weights of `start` in policy and reference."""
    state = folder.resume()
    if state is not None:
        return state
    folder.load_start(start, config.architecture)
    policy.copy_to_reference()
    return TrainingState()


def _rollouts(config: ReinforceConfig, rollout_engine: RolloutEngine, stack: ExitStack) -> Rollouts:
    from megatron.core import parallel_state

    pool = None
    # The tensor- and pipeline-parallel ranks of a model sample the same texts together, so one of them grades. The
    # replicas of the model, over data and context parallelism, share the prompts among them.
    grades = (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
    )
    if grades:
        pool = stack.enter_context(config.grading.open_pool())
    sampling = SamplingParams(
        max_new_tokens=config.max_new_tokens, stop=list(config.stop) or None, seed=config.seed
    )
    share = (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
    return Rollouts(
        rollout_engine.engine,
        pool,
        sampling,
        config.rewards,
        share=share,
        sandbox=config.grading.sandbox,
        push_weights=rollout_engine.push_weights,
    )


class _RLRun:
    """The steps and evaluations of a run and its log, which only rank 0 writes."""

    def __init__(
        self,
        config: ReinforceConfig,
        trainer: RLTrainer,
        sets: Sequence[EvaluationSet],
        state: TrainingState,
        *,
        folder: RunFolder,
    ) -> None:
        self.config, self.trainer, self.sets, self.state = config, trainer, sets, state
        self.folder, self.out = folder, folder.out
        out = folder.out
        self.steps_without_signal = steps_without_signal(out, state.step)
        # The log removes the lines after the checkpoint, so all ranks must have read them before it opens.
        dist.barrier()
        self.log: RLLog | None = None
        if dist.get_rank() == 0:
            self.log = RLLog(out, config.steps, state.step, open_trackers(config.logging, out))
        self.report: StepReport | None = None

    @property
    def given_up(self) -> bool:
        return 0 < self.config.give_up_after <= self.steps_without_signal

    def step(self) -> bool:
        """One step, logged; returns False if `give_up_after` ends the run.

        Raises:
            TrainingError: if more updates in a row were not finite than `guard.max_skipped` allows.
        """
        config, state = self.config, self.state
        lr = config.schedule.at(state.step, config.steps)
        with profiled(state.step + 1, config.logging.profile_steps, self.out):
            self.report = report = self.trainer.step(state.step + 1, state.consumed_samples, lr)
        state.step, state.consumed_samples = state.step + 1, report.consumed_prompts
        if self.log:
            self.log.step(state.step, report, lr)
            if config.answers_every and state.step % config.answers_every == 0:
                write_answers(self.out / ANSWERS, state.step, report.groups)
        self._check_updates(report)
        self.steps_without_signal = 0 if report.kept else self.steps_without_signal + 1
        if self.given_up:
            log.warning(
                "step %d: all groups had equal rewards for %d steps; stopping (give_up_after)",
                state.step,
                self.steps_without_signal,
            )
        return not self.given_up

    def save(self) -> None:
        """Write a checkpoint, unless the last update was not applied: the newest one is then before the bad ones."""
        guard = self.trainer.guard
        assert guard is not None
        if not guard.streak:
            self.state.guard = guard.state()
            self.folder.save_step(self.state)

    def _check_updates(self, report: StepReport) -> None:
        guard = self.trainer.guard
        assert guard is not None
        if all(update.applied for update in report.updates):
            return
        prompts = ", ".join(group.problem.id for group in report.groups)
        line = f"step {self.state.step}: {guard.reason}, so the update is not applied; prompts {prompts}"
        if is_rank_zero():
            log.warning(line)
        if guard.must_stop:
            newest = self.folder.newest_step()
            kept = "no checkpoint" if newest is None else f"the checkpoint of step {newest} in {self.out}"
            raise TrainingError(
                f"{line}; {guard.streak} updates in a row were not applied (guard.max_skipped="
                f"{guard.settings.max_skipped}); kept is {kept}"
            )

    def evaluate(self) -> None:
        """Sample and grade all evaluation sets at the current weights."""
        for each in self.sets:
            each.evaluate(self.trainer.rollouts, self.state.step, self.log, self.out)

    def finish(self) -> dict[str, Any]:
        """Close the log and return the metrics of the receipt; those of the evaluation sets on rank 0 only."""
        rates_of_sets: dict[str, Any] = {}
        last_step = self.report.record() if self.report else {}
        if self.log:
            self.log.close()
            lines = read_metrics(self.out)
            # A run that was killed after its last step takes none; the log has the report of the last one.
            logged = [line for line in lines if "lr" in line]
            if not last_step and logged:
                last_step = {key: value for key, value in logged[-1].items() if key not in ("step", "lr")}
            for each in self.sets:
                rates = evaluations(lines, each.name)
                rates_of_sets[each.name] = {"before": rates[min(rates)], "after": rates[max(rates)]}
        return {
            "steps": self.state.step,
            "given_up": self.given_up,
            "skipped_updates": self.trainer.guard.skipped if self.trainer.guard else 0,
            "consumed_prompts": self.state.consumed_samples,
            **rates_of_sets,
            "last_step": last_step,
        }
