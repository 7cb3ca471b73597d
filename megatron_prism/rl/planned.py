"""An `rl` stage as the planner sees it: sampling on every replica, then log-probabilities and the update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from megatron_prism.planning.flops import flops_per_token
from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.kernel_work import FUSED_CHUNK, Software
from megatron_prism.planning.sampling_time import Answers, sampling_seconds
from megatron_prism.planning.search import Found, Option, search
from megatron_prism.planning.step_time import Job, StepTime, step_time
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.memory import reinforcement_workload

T = TypeVar("T", bound=ReinforceConfig)
# Assumption: mean tokens of a prompt and of an answer. A published run of a reasoning model has 3,203 with the prompt
# (NeMo-RL, docs/about/performance-summary.md, Qwen3-30B-A3B).
PROMPT_TOKENS, ANSWER_TOKENS = 300, 3_000


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of an answer."""

    prompt: int = PROMPT_TOKENS
    answer: int = ANSWER_TOKENS


def reinforcement_job(config: ReinforceConfig, gpu: GpuProfile) -> Job:
    """The largest update of the stage, which decides its memory."""
    # The policy has the torch layers; kernels of mamba_ssm are used where they are installed.
    software = Software(backend="torch", fused=False, chunk=FUSED_CHUNK, merges_blocks=False)
    work = replace(reinforcement_workload(config), overlap=True)
    return Job(config.architecture, config.layout, work, gpu, software)


def reinforcement_step(config: ReinforceConfig, gpu: GpuProfile, lengths: Lengths) -> StepTime:
    """Seconds of one step: sampling, the reference's log-probabilities, and the update.

    Dynamic sampling is not counted.
    """
    loop, layout = config.loop, config.layout
    answer = min(lengths.answer, config.max_new_tokens, config.context_length - lengths.prompt)
    answers = loop.prompts_per_step * loop.samples_per_prompt
    replicas = layout.data_parallel_size
    here = -(-answers // replicas)
    sampled = Answers(
        count=here,
        prompts=-(-loop.prompts_per_step // replicas),
        prompt_tokens=lengths.prompt,
        answer_tokens=answer,
        longest=min(config.max_new_tokens, config.context_length - lengths.prompt),
        slots=config.slots,
    )
    parts = sampling_seconds(config.architecture, layout, sampled, gpu)
    job = reinforcement_job(config, gpu)
    # Packed rows are nearly full.
    rows = max(1, round(here * (lengths.prompt + answer) / config.context_length / loop.minibatches))
    work = replace(job.work, micro_batches=rows, micro_batch_size=1)
    # Attention and scans see one answer at a time, not the packed row.
    inside = replace(
        work, sequence_length=lengths.prompt + answer, micro_batches=-(-here // loop.minibatches)
    )
    update = step_time(replace(job, work=inside))
    parts |= {f"update: {name}": loop.minibatches * each for name, each in update.parts.items()}
    forward = (1 if config.objective.kl_coefficient else 0) + (1 if loop.minibatches > 1 else 0)
    third = sum(update.parts[name] for name in ("matrix", "attention", "scan", "memory", "tensor", "context"))
    parts["log-probabilities"] = forward * loop.minibatches * third / (4 if config.recompute == "full" else 3)
    tokens = float(answers * (lengths.prompt + answer))
    return StepTime(
        {name: each for name, each in parts.items() if each},
        tokens,
        layout.world_size,
        flops_per_token(config.architecture, lengths.prompt + answer),
    )


def with_option(config: T, option: Option) -> T:
    """The config with this layout; micro-batches are packed rows.

    Raises:
        PrismError: if the config refuses it.
    """
    return replace(config, parallel=option.parallel, recompute=option.recompute)


def search_reinforcement(config: ReinforceConfig, gpus: int, gpu: GpuProfile, lengths: Lengths) -> Found:
    """The layouts of this stage on `gpus` GPUs, the fastest step first."""
    latest = [config]

    def build(option: Option) -> Job:
        latest[0] = with_option(config, option)
        return reinforcement_job(latest[0], gpu)

    def seconds(job: Job) -> StepTime:
        # `search` asks for the time of an option directly after it has built it.
        return reinforcement_step(latest[0], gpu, lengths)

    return search(gpus, gpu, build, seconds, micro_batches=(1,))
