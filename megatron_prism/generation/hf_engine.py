"""Sampling with transformers from a Hugging Face folder, on a CPU or a GPU, for any architecture that transformers has.

The prompt ids, the sampling and the end of a completion are those of MegatronEngine: transformers computes the logits,
and a logits processor leaves only the token that `sample_tokens` chose with the sample's own random numbers. So the
model's generation_config.json has no influence, and a seed gives the same completion in every batch.

Batches are static: the samples of a batch wait for its longest. Prompts of different lengths are padded on the left.
Some architectures ignore the mask, and some mix the rows of a batch. So the first batch is preceded by a probe, and
such a model gets batches of prompts of one length, or one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import (
    READ_TOKENS,
    Completion,
    Keep,
    Likelihood,
    Progress,
    Refuse,
    SamplingParams,
    keep_nothing,
    no_progress,
    prompt_seeds,
    sample_numbers,
)
from megatron_prism.generation.hf_likelihood import log_likelihoods
from megatron_prism.generation.request import Ending, Request, check_vocabulary, new_requests
from megatron_prism.generation.token_sampling import sample_tokens
from megatron_prism.models.model_folder import CONFIG, LENGTH_KEYS, read_json
from megatron_prism.platform.console import get_logger

if TYPE_CHECKING:
    from megatron_prism.data.text_policy import TextSettings
    from megatron_prism.data.tokenizer import Tokenizer

# The longest sequence of a model whose config names none.
NO_LIMIT = 2**31
# What a batch of a model may hold.
ANY_LENGTHS, ONE_LENGTH, ONE_PROMPT = "prompts of any lengths", "prompts of one length", "one prompt"
# The probe: two short rows and a longer one, and the number of tokens to sample after them.
PROBE_TOKENS, PROBE_PADDING, PROBE_STEPS = 16, 16, 3
# The largest divergence (nats) of a row's distribution in a batch from the same one alone that is only rounding.
PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

log = get_logger(__name__)


class HFEngine:
    """Samples from a model of transformers.

    Args:
        model: a causal language model, on the device it computes on. Its generation config is replaced.
        tokenizer: vocabulary rows of the model without a token are excluded: they have no probability.
        batch_size: maximum number of sequences decoded together.
        max_length: maximum number of tokens of prompt and completion; None: what the model's config says.

    Raises:
        ConfigError: for a batch_size below 1.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, batch_size: int = 64, max_length: int | None = None
    ) -> None:
        from transformers import GenerationConfig

        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be 1 or more")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.context_length = max_length or _longest(model.config)
        # transformers would take from it whatever a call does not set, such as a repetition penalty.
        model.generation_config = GenerationConfig()

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer_folder: Path,
        batch_size: int = 64,
        *,
        text: TextSettings | None = None,
        max_length: int | None = None,
    ) -> HFEngine:
        """An engine on the weights of a Hugging Face folder, in bf16 on a GPU and fp32 elsewhere.

        Code in the folder is not run, and weights that are not in safetensors files are not read.

        Args:
            text: how prompts begin; None: as the tokenizer's files say.

        Raises:
            CheckpointError: if transformers cannot load the model, or the folder lacks some of its weights.
            DataError: for a tokenizer that does not fit the model.
        """
        from megatron_prism.conversion.logits import load_in_transformers
        from megatron_prism.data.tokenizer import Tokenizer
        from megatron_prism.models.families import family, supported_families
        from megatron_prism.platform.hardware import device, has_gpu

        folder = Path(folder)
        tokenizer = Tokenizer.load(Path(tokenizer_folder), text)
        name = read_json(folder / CONFIG).get("model_type")
        # So that a model of a family that Megatron knows is the same model in all engines.
        changes = family(name).for_comparison if name in supported_families() else None
        dtype = torch.bfloat16 if has_gpu() else torch.float32
        model = load_in_transformers(folder, dtype, changes)
        check_vocabulary(tokenizer, tokenizer_folder, model.get_input_embeddings().num_embeddings, folder)
        return cls(model.to(device()), tokenizer, batch_size, max_length)

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
        """`samples` completions of each prompt, in order; `progress` gets the number that just finished.

        A completion also ends when prompt and completion reach the context length.

        Raises:
            DataError: for a prompt that is empty, or so long that no token fits after it, if `refuse` is None.
        """
        seeds = prompt_seeds(params.seed, prompts) if seeds is None else seeds
        wanted = sample_numbers(prompts, samples, numbers)
        limit = self.context_length
        queue = list(
            new_requests(
                self.tokenizer, prompts, params, wanted=wanted, seeds=seeds, limit=limit, refuse=refuse
            )
        )
        # Prompts of similar lengths need little padding. The longest come first: if memory is short, it shows at once.
        queue.sort(key=lambda request: -len(request.prompt_ids))
        ending = Ending(self.tokenizer, params)
        finished: dict[tuple[int, int], Completion] = {}

        def end(request: Request) -> None:
            completion = ending.completion(request)
            finished[request.prompt, request.sample] = completion
            keep(request.prompt, request.sample, completion)
            progress(1)

        for batch in self._batches(queue, min(self.batch_size, batch_size or self.batch_size)):
            self._run(batch, _Choice(batch, ending, params, end))
        return [[finished[index, number] for number in row] for index, row in enumerate(wanted)]

    def log_likelihoods(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_tokens: int = READ_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Likelihood]:
        """How probable each continuation is after its context (hf_likelihood.py), over all rows of the vocabulary.

        Raises:
            DataError: for an empty context or continuation, or a continuation longer than the context length.
        """
        return log_likelihoods(
            self.model, pairs, self.context_length, batch_tokens=batch_tokens, progress=progress
        )

    def _batches(self, queue: Sequence[Request], size: int) -> Iterator[list[Request]]:
        """Consecutive requests, at most `size` together, and only such as the model can read together."""
        batch: list[Request] = []
        for request in queue:
            if batch and (len(batch) == size or not self._fits(request, batch)):
                yield batch
                batch = []
            batch.append(request)
        if batch:
            yield batch

    def _fits(self, request: Request, batch: Sequence[Request]) -> bool:
        same_length = len(request.prompt_ids) == len(batch[0].prompt_ids)
        return self._batching == ANY_LENGTHS or (self._batching == ONE_LENGTH and same_length)

    def _run(self, batch: Sequence[Request], choice: _Choice) -> None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        started = perf_counter()
        for request in batch:
            request.started = started
        width = max(len(request.prompt_ids) for request in batch)
        self._generate(
            [request.prompt_ids for request in batch],
            width,
            max(request.max_tokens for request in batch),
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([choice.ended_rows]),
        )

    def _generate(
        self, rows: Sequence[Sequence[int]], width: int, steps: int, *, logits: bool = False, **options: Any
    ) -> Any:
        """transformers' `generate` on rows padded on the left to `width`; with `logits`, it returns them, too."""
        from transformers import GenerationConfig

        pad, device = self.tokenizer.pad_id, self.model.device
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=steps,
            pad_token_id=pad,
            return_dict_in_generate=logits,
            output_logits=logits,
        )
        return self.model.generate(tokens, attention_mask=mask, generation_config=config, **options)

    @cached_property
    def _batching(self) -> str:
        """What a batch may hold, so that every row is computed as it is alone."""
        count = PROBE_TOKENS
        ids = [number % self.tokenizer.vocab_size for number in range(1, 1 + 3 * count + PROBE_PADDING)]
        row, same, longer = ids[:count], ids[count : 2 * count], ids[2 * count :]
        alone = self._probe([row])
        if self._agree(alone, self._probe([row, longer])):
            return ANY_LENGTHS
        holds = ONE_LENGTH if self._agree(alone, self._probe([row, same])) else ONE_PROMPT
        log.warning(
            "model_type=%s: transformers computes something else for a prompt in a batch, so a batch holds %s, which "
            "is slower",
            self.model.config.model_type,
            holds,
        )
        return holds

    def _probe(self, rows: Sequence[Sequence[int]]) -> Any:
        return self._generate(rows, max(map(len, rows)), PROBE_STEPS, logits=True)

    def _agree(self, first: Any, second: Any) -> bool:
        """Whether the first rows of two probes have the same distributions."""
        tolerance = PROBE_TOLERANCE[self.model.dtype]
        made = [run.sequences[0, -PROBE_STEPS:].tolist() for run in (first, second)]
        return all(
            # After different tokens, distributions cannot be compared. This form also catches NaN.
            made[0][:step] != made[1][:step] or _divergence(one[0], other[0]) <= tolerance
            for step, (one, other) in enumerate(zip(first.logits, second.logits, strict=True))
        )


def _divergence(first: Tensor, second: Tensor) -> float:
    """The Kullback-Leibler divergence of two distributions, given as logits `[vocabulary]`; NaN if one has NaN."""
    first, second = torch.log_softmax(first.float(), -1), torch.log_softmax(second.float(), -1)
    return float((first.exp() * (first - second)).sum())


class _Choice:
    """The logits processor and stopping criterion of one batch: samples, and records what was sampled."""

    def __init__(
        self,
        batch: Sequence[Request],
        ending: Ending,
        params: SamplingParams,
        end: Callable[[Request], None],
    ) -> None:
        self.batch, self.ending, self.params, self.end = batch, ending, params, end
        self.ended = [False] * len(batch)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Sample a token for each row of `scores`, `[batch, vocabulary]`; returns scores that allow only this one."""
        logits = scores[:, : self.ending.tokenizer.vocab_size].float()
        draws = [
            0.0 if ended else next(request.numbers)
            for request, ended in zip(self.batch, self.ended, strict=True)
        ]
        uniform = torch.tensor(draws, dtype=torch.float64).to(scores.device)
        tokens, logprobs = sample_tokens(logits, uniform, self.params.temperature, self.params.top_p)
        pairs = torch.stack([tokens.double(), logprobs.double()]).tolist()
        for row, (request, token, logprob) in enumerate(zip(self.batch, *pairs, strict=True)):
            if not self.ended[row] and self.ending.add(request, int(token), logprob):
                self.ended[row] = True
                self.end(request)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def ended_rows(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor(self.ended, device=input_ids.device)


def _longest(config: Any) -> int:
    """The longest sequence according to the model's config."""
    config = config.get_text_config(decoder=True)
    for key in LENGTH_KEYS:
        if isinstance(value := getattr(config, key, None), int) and value > 0:
            return value
    return NO_LIMIT
