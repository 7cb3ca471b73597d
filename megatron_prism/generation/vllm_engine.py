"""Sampling on one GPU with vLLM (extra `vllm`, 0.32 or newer), with new weights taken in without a restart.

Written after the sources of vLLM 0.32.0 and never run: it needs a GPU, which the tests do not have. They check the
refusal without vLLM and the mapping of sampling parameters, and nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, ServerError
from megatron_prism.generation.engine import (
    Completion,
    SamplingParams,
    check_prompts,
    prompt_seeds,
    sample_seed,
)


def sampling_arguments(params: SamplingParams, seed: int, end_id: int) -> dict[str, Any]:
    """The keyword arguments of `vllm.SamplingParams` for one completion.

    `logprobs=0` reports the sampled token's and no other. Special tokens show as their names, as in MegatronEngine;
    vLLM leaves the end token and the stop string out of the text.
    """
    return {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stop": list(params.stop or []),
        "stop_token_ids": [end_id],
        "seed": seed,
        "logprobs": 0,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


class VLLMEngine:
    """Samples from a Hugging Face folder in this process, on one GPU.

    Token ids and log-probabilities are vLLM's own; the latter are of the untempered distribution.

    Args:
        folder: a Hugging Face folder with its tokenizer.
        max_length: most tokens of prompt and completion; None takes the model's.
        gpu_memory_share: share of the GPU's memory that vLLM takes; lower it where a trainer is on the same GPU.
        text: how prompts begin, where that is not as the tokenizer's files say.

    Raises:
        ConfigError: where vLLM is not installed.
        DataError: for a folder without a tokenizer.
    """

    def __init__(
        self,
        folder: Path,
        max_length: int | None = None,
        gpu_memory_share: float = 0.9,
        text: TextSettings | None = None,
    ) -> None:
        try:
            import vllm
        except ModuleNotFoundError as problem:
            if problem.name != "vllm":
                raise
            raise ConfigError(
                "engine 'vllm': vLLM is not installed; pip install 'megatron-prism[vllm]' on a machine with a GPU, "
                "or use engine 'megatron', which works here"
            ) from None
        self.tokenizer = Tokenizer.load(Path(folder), text)
        # In this process: only then can `update_weights` hand over tensors without pickling them.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._sampling_params = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=str(folder),
            max_model_len=max_length,
            gpu_memory_utilization=gpu_memory_share,
            logprobs_mode="raw_logprobs",
        )

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams,
        *,
        samples: int = 1,
        progress: Callable[[int], None] = lambda finished: None,
        seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order; `progress` is called once, when all have finished.

        Raises:
            DataError: for a prompt that is empty, or leaves no room for a single token.
            ServerError: if vLLM read other prompt tokens than it was given.
        """
        # As ids: what begins a prompt is this tokenizer's policy, and not vLLM's.
        encoded = self.tokenizer.encode_batch(list(prompts))
        check_prompts(prompts, encoded, self._llm.model_config.max_model_len)
        asked = [
            sampling_arguments(params, sample_seed(seed, number), self.tokenizer.eos_id)
            for seed in (prompt_seeds(params.seed, prompts) if seeds is None else seeds)
            for number in range(samples)
        ]
        answers = self._llm.generate(
            [{"prompt_token_ids": token_ids} for token_ids in encoded for _ in range(samples)],
            [self._sampling_params(**arguments) for arguments in asked],
            use_tqdm=False,
        )
        sent = (token_ids for token_ids in encoded for _ in range(samples))
        for token_ids, answer in zip(sent, answers, strict=True):
            if list(answer.prompt_token_ids) != token_ids:
                raise ServerError(
                    f"engine 'vllm': {len(token_ids)} prompt tokens were given, and it read "
                    f"{len(answer.prompt_token_ids)} others: this version of vLLM changes prompts; use another"
                )
        progress(len(answers))
        in_order = iter([_completion(answer.outputs[0]) for answer in answers])
        return [[next(in_order) for _ in range(samples)] for _ in prompts]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take new weights for the next `generate`, under the names of the Hugging Face folder, one after another."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        # Prefixes that the old weights computed must not be read again.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept prefixes of the old weights: completions are still under way")


def _completion(output: Any) -> Completion:
    """A `vllm.CompletionOutput` as ours."""
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a completion with {output.finish_reason!r}")
    ids = list(output.token_ids)
    values = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
    return Completion(output.text, ids, values, output.finish_reason)
