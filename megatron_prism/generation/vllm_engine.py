"""Sampling on one GPU with vLLM (extra `vllm`, 0.32 or newer). New weights are loaded without a restart.

Written from the sources of vLLM 0.32.0 and never run, because vLLM needs a GPU. The tests check
the error without vLLM, the mapping of sampling parameters, and the calls against a stand-in (tests/stand_in_vllm.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, ServerError
from megatron_prism.generation.engine import (
    Completion,
    Keep,
    Progress,
    Refuse,
    SamplingParams,
    check_prompts,
    keep_nothing,
    no_progress,
    prompt_seeds,
    sample_numbers,
    sample_seed,
)


def sampling_arguments(params: SamplingParams, seed: int, end_id: int) -> dict[str, Any]:
    """The keyword arguments of `vllm.SamplingParams` for one completion.

    `logprobs=0` reports the log-probability of the sampled token only. Special tokens appear in the text as their
    names, as in MegatronEngine; vLLM leaves the end token and the stop string out.
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

    Token ids and log-probabilities are vLLM's; the latter are of the untempered distribution.

    Args:
        folder: a Hugging Face folder.
        max_length: maximum number of tokens of prompt and completion; None: the model's.
        gpu_memory_share: share of the GPU's memory that vLLM takes; lower it if a trainer uses the same GPU.
        text: how prompts begin; None: as the tokenizer's files say.
        tokenizer_folder: the folder of the tokenizer; None: `folder`.

    Raises:
        ConfigError: if vLLM is not installed.
        DataError: for a folder without a tokenizer.
    """

    def __init__(
        self,
        folder: Path,
        max_length: int | None = None,
        gpu_memory_share: float = 0.9,
        *,
        text: TextSettings | None = None,
        tokenizer_folder: Path | None = None,
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
        tokenizer_folder = Path(tokenizer_folder or folder)
        self.tokenizer = Tokenizer.load(tokenizer_folder, text)
        # vLLM runs in this process, so that `update_weights` can pass tensors without pickling them.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._sampling_params = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=str(folder),
            tokenizer=str(tokenizer_folder),
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
        progress: Progress = no_progress,
        seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
        numbers: Sequence[Sequence[int]] | None = None,
        keep: Keep = keep_nothing,
        refuse: Refuse | None = None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order; `progress` and `keep` are called at the end.

        `seconds` of a completion are those of the whole call, because vLLM does not report them for each.

        Raises:
            DataError: for a prompt that is empty, or so long that no token fits after it, if `refuse` is None.
            ServerError: if vLLM changed the tokens of a prompt.
        """
        # Prompts are sent as ids, because the start token is decided by this tokenizer's policy and not by vLLM.
        encoded = self.tokenizer.encode_batch(list(prompts))
        wanted = sample_numbers(prompts, samples, numbers)
        check_prompts(prompts, encoded, self._llm.model_config.max_model_len, wanted=wanted, refuse=refuse)
        arguments = [
            sampling_arguments(params, sample_seed(seed, number), self.tokenizer.eos_id)
            for seed, row in zip(
                prompt_seeds(params.seed, prompts) if seeds is None else seeds, wanted, strict=True
            )
            for number in row
        ]
        sent = [token_ids for token_ids, row in zip(encoded, wanted, strict=True) for _ in row]
        started = perf_counter()
        outputs = self._llm.generate(
            [{"prompt_token_ids": token_ids} for token_ids in sent],
            [self._sampling_params(**each) for each in arguments],
            use_tqdm=False,
        )
        seconds = perf_counter() - started
        for token_ids, output in zip(sent, outputs, strict=True):
            if list(output.prompt_token_ids) != token_ids:
                raise ServerError(
                    f"engine 'vllm': a prompt of {len(token_ids)} tokens became {len(output.prompt_token_ids)} "
                    "other tokens, so this version of vLLM changes prompts; use another version"
                )
        progress(len(outputs))
        in_order = iter([_completion(output.outputs[0], seconds) for output in outputs])
        made = [[next(in_order) for _ in row] for row in wanted]
        for index, row in enumerate(wanted):
            for number, completion in zip(row, made[index], strict=True):
                keep(index, number, completion)
        return made

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Load new weights for the next `generate`, tensor by tensor, with their names in the Hugging Face folder."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        # Cached prefixes belong to the old weights.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM did not drop the cached prefixes of the old weights, because completions are still running"
            )


def _completion(output: Any, seconds: float) -> Completion:
    """Convert a `vllm.CompletionOutput` into a `Completion`."""
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a completion with {output.finish_reason!r}")
    ids = list(output.token_ids)
    values = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
    return Completion(output.text, ids, values, output.finish_reason, seconds)
