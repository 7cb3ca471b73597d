"""The time of sampling: reading prompts by products, and writing answers by the memory's bandwidth.

A step of decoding reads the weights of a rank once for all texts, and the keys, values and states of each. The
`megatron` engine starts every kernel from Python, which takes longer than the kernel for a model of a few billion
parameters: `DISPATCH`.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.activations import cache_bytes
from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.kernel_work import Software, forward_work, head_work
from megatron_prism.planning.parameters import count_parameters
from megatron_prism.planning.step_time import MEMORY, SHAPES
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.process_groups import ParallelConfig

# Assumption: seconds from one start of a kernel to the next in eager torch, and kernels per layer of a decode step.
DISPATCH, KERNELS = 6e-6, 20


@dataclass(frozen=True)
class Answers:
    """What is sampled by one replica of a model.

    Attributes:
        count: answers.
        prompts: prompts, each read once for all its answers.
        prompt_tokens, answer_tokens: tokens of a prompt; mean tokens of an answer.
        longest: tokens of the longest answer.
        slots: answers sampled at once.
    """

    count: int
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    longest: int
    slots: int


def sampling_seconds(
    architecture: Architecture, parallel: ParallelConfig, answers: Answers, gpu: GpuProfile
) -> dict[str, float]:
    """Seconds of reading prompts and of decoding, on one replica.

    Slots are full until the last answers; then the longest one ends alone.
    """
    a, tp, pp = architecture, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    slots = min(answers.slots, answers.count)
    # Weights of all stages pass one after the other, because a token needs all of them.
    weights = 2 * count_parameters(a) / tp
    cached = Workload(1, cached_tokens=answers.prompt_tokens + answers.answer_tokens // 2, cached_texts=1)
    text = cache_bytes(a, ParallelConfig(tensor_model_parallel_size=tp), cached, 0)
    overhead = len("".join(a.kinds_of_layers)) * KERNELS * DISPATCH + pp * 20e-6
    full = max((weights + slots * text) / (gpu.memory_bandwidth * MEMORY), overhead)
    alone = max((weights + text) / (gpu.memory_bandwidth * MEMORY), overhead)
    steps = answers.count * answers.answer_tokens / slots
    tail = max(0, answers.longest - answers.answer_tokens)
    return {
        "prompts": prompt_seconds(a, parallel, answers.prompts, answers.prompt_tokens, gpu=gpu),
        "decoding": steps * full + tail * alone,
    }


def prompt_seconds(
    architecture: Architecture,
    parallel: ParallelConfig,
    prompts: int,
    tokens: int,
    *,
    gpu: GpuProfile,
) -> float:
    """Seconds to read prompts of this many tokens on one replica."""
    a, tp = architecture, parallel.tensor_model_parallel_size
    work = forward_work(a, a.kinds_of_layers, tokens, Software(backend="torch"))
    products = (work.matrix + work.scan) / (gpu.matmul_speed("bf16") * SHAPES)
    attention = work.attention / gpu.attention_speed("torch", False)
    moved = work.moved / (gpu.memory_bandwidth * MEMORY)
    # Logits of the last token only.
    head = head_work(a, Software())[0].head / gpu.matmul_speed("bf16")
    return prompts * (tokens * (products + attention + moved) + head) / tp
