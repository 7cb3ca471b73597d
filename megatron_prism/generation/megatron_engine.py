"""Sampling from a Megatron model in this process, with continuous batching.

Every sequence that is being sampled has a slot (models/layers/decode_cache.py). A sequence that ends gives its slot to
the next request in the queue, so the batch stays full until the queue is empty, however uneven the lengths are. A
prompt is read once for all its samples. The random numbers of a sample depend on the prompt's seed and on the sample's
number, not on the batch.

Under tensor and pipeline parallelism, the ranks of a model call `generate` together with the same arguments. Ranks that
differ only in context parallelism hold whole models here, and may sample different prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from megatron_prism.generation.likelihood import log_likelihoods
from megatron_prism.generation.pipeline_forward import broadcast_to_model_ranks, pipeline_forward
from megatron_prism.generation.request import Ending, Request, check_vocabulary, new_requests
from megatron_prism.generation.token_sampling import sample_tokens
from megatron_prism.models.layers.decode_cache import (
    Decode,
    DecodeCache,
    Prefill,
    install_decode_cache,
    set_decode_cache,
)

if TYPE_CHECKING:
    from megatron_prism.data.text_policy import TextSettings
    from megatron_prism.data.tokenizer import Tokenizer
    from megatron_prism.platform.process_groups import ParallelConfig

# New requests wait until this share of the slots is free: reading one prompt costs nearly as much as reading several.
ADMIT_SHARE = 1 / 8


class MegatronEngine:
    """Samples from a model of this process.

    Args:
        model: a GPTModel or MambaModel of the torch backend on the device it computes on, or this rank's chunks of it.
        tokenizer: vocabulary rows of the model without a token are excluded: they have no probability.
        batch_size: maximum number of sequences decoded together.
        context_length: maximum number of tokens of prompt and completion; None: the model's max_position_embeddings.

    Raises:
        ConfigError: for a batch_size below 1, or layers of another backend.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, batch_size: int = 64, context_length: int | None = None
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be 1 or more")
        self.models = list(model) if isinstance(model, list | tuple) else [model]
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.context_length = context_length or self.models[0].max_sequence_length
        self._device = next(self.models[0].parameters()).device
        for chunk in self.models:
            install_decode_cache(chunk)

    @classmethod
    @contextmanager
    def load(
        cls,
        model_folder: Path,
        tokenizer_folder: Path,
        batch_size: int = 64,
        *,
        text: TextSettings | None = None,
        parallel: ParallelConfig | None = None,
    ) -> Iterator[MegatronEngine]:
        """An engine on the weights of a Megatron or Hugging Face folder, in bf16 on a GPU and fp32 elsewhere.

        A Hugging Face folder is read as it is, without a converted copy.

        Args:
            text: how prompts begin; None: as the tokenizer's files say.
            parallel: the layout over the processes, all of which call this together; None: one process.

        Raises:
            ParallelError: if the layout does not divide the model.
        """
        from megatron_prism.conversion.loaded_model import architecture_of, load_model
        from megatron_prism.data.tokenizer import Tokenizer
        from megatron_prism.platform.hardware import has_gpu
        from megatron_prism.platform.process_groups import ParallelConfig, session

        folder = Path(model_folder)
        architecture = architecture_of(folder)
        tokenizer = Tokenizer.load(Path(tokenizer_folder), text)
        check_vocabulary(tokenizer, tokenizer_folder, architecture.vocab_size, folder)
        parallel = parallel or ParallelConfig()
        architecture.check_parallel(parallel)
        with session(parallel):
            dtype = torch.bfloat16 if has_gpu() else torch.float32
            model = load_model(folder, architecture, dtype, parallel)
            yield cls(model, tokenizer, batch_size)

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
        queue = deque(
            new_requests(
                self.tokenizer, prompts, params, wanted=wanted, seeds=seeds, limit=limit, refuse=refuse
            )
        )
        finished: dict[tuple[int, int], Completion] = {}
        modes = [chunk.training for chunk in self.models]
        size = min(self.batch_size, batch_size or self.batch_size, len(queue))
        batch = _Batch(self, params, size)
        for chunk in self.models:
            chunk.eval()
            set_decode_cache(chunk, batch.cache)
        try:
            while queue or batch.requests:
                ended = batch.admit(queue) or batch.step()
                for request in ended:
                    completion = batch.ending.completion(request)
                    finished[request.prompt, request.sample] = completion
                    keep(request.prompt, request.sample, completion)
                if ended:
                    progress(len(ended))
        finally:
            for chunk, training in zip(self.models, modes, strict=True):
                set_decode_cache(chunk, None)
                chunk.train(training)
        return [[finished[index, number] for number in row] for index, row in enumerate(wanted)]

    def log_likelihoods(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_tokens: int = READ_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Likelihood]:
        """How probable each continuation is after its context (likelihood.py), over all rows of the model's vocabulary.

        Raises:
            DataError: for an empty context or continuation, or a continuation longer than the context length.
        """
        return log_likelihoods(
            self.models, pairs, self.context_length, batch_tokens=batch_tokens, progress=progress
        )


class _Batch:
    """The requests that are being sampled. Slot i belongs to `requests[i]`; the free slots come after these."""

    def __init__(self, engine: MegatronEngine, params: SamplingParams, size: int) -> None:
        config = engine.models[0].config
        self.engine, self.params, self.size = engine, params, size
        self.device, self.vocabulary = engine._device, engine.tokenizer.vocab_size
        # Sequence parallelism splits a row into equal parts; free slots pad a row whose length is not divisible.
        self.multiple = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self.cache = DecodeCache(self._padded(size))
        self.requests: list[Request] = []
        self.ending = Ending(engine.tokenizer, params)

    def admit(self, queue: deque[Request]) -> list[Request]:
        """Move requests from the queue to free slots, read their prompts and sample their first tokens.

        Returns the requests that ended with this token.
        """
        free = self.size - len(self.requests)
        if not queue or (self.requests and free < self.size * ADMIT_SHARE):
            return []
        new: list[Request] = []
        # The slot of the first new request of each prompt; the prompt is read there.
        prompts: dict[int, int] = {}
        tokens: list[int] = []
        while queue and len(new) < free:
            request = queue[0]
            if request.prompt not in prompts:
                if tokens and len(tokens) + len(request.prompt_ids) > READ_TOKENS:
                    break
                prompts[request.prompt] = len(self.requests) + len(new)
                tokens += request.prompt_ids
            new.append(queue.popleft())
            request.started = perf_counter()
        if not new:
            return []
        first = len(self.requests)
        self.requests += new
        lengths = [len(self.requests[slot].prompt_ids) for slot in prompts.values()]
        row = self._padded(len(tokens))
        step = Prefill.of(lengths, list(prompts.values()), row, self.device)
        logits = self._forward(tokens + [0] * (row - len(tokens)), step, max(*lengths, row - len(tokens)))
        sources = [prompts[request.prompt] for request in new]
        copies = [(source, slot) for slot, source in enumerate(sources, first) if source != slot]
        self.cache.copy([source for source, _ in copies], [target for _, target in copies])
        if logits is not None:
            rows = {prompt: row for row, prompt in enumerate(prompts)}
            logits = logits[[rows[request.prompt] for request in new]]
        return self._sample(first, logits)

    def step(self) -> list[Request]:
        """Sample one token of every request; returns the requests that ended."""
        count = self._padded(len(self.requests))
        padding = [0] * (count - len(self.requests))
        positions = [len(request.prompt_ids) + len(request.token_ids) - 1 for request in self.requests]
        length = max(positions) + 1
        step = Decode(count, torch.tensor(positions + padding, device=self.device), length)
        logits = self._forward([request.token_ids[-1] for request in self.requests] + padding, step, length)
        return self._sample(0, None if logits is None else logits[: len(self.requests)])

    def _padded(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple

    # Not inference_mode: the model keeps its rotary tables, and training could not save inference tensors.
    @torch.no_grad()
    def _forward(self, tokens: list[int], step: Prefill | Decode, length: int) -> Tensor | None:
        """fp32 logits over the tokenizer's vocabulary, one row per output; None before the last pipeline stage."""
        self.cache.prepare(step, length)
        logits = pipeline_forward(self.engine.models, torch.tensor([tokens], device=self.device))
        return None if logits is None else logits[:, : self.vocabulary].float()

    @torch.no_grad()
    def _sample(self, first: int, logits: Tensor | None) -> list[Request]:
        """Sample the next token of the requests from slot `first` on; remove and return those that end with it."""
        requests = self.requests[first:]
        numbers = [next(request.numbers) for request in requests]
        uniform = torch.tensor(numbers, dtype=torch.float64).to(self.device)
        pairs = torch.empty(2, len(requests), dtype=torch.float64, device=self.device)
        if logits is not None:
            pairs[0], pairs[1] = sample_tokens(logits, uniform, self.params.temperature, self.params.top_p)
        broadcast_to_model_ranks(pairs)
        tokens, logprobs = pairs.tolist()
        ended = []
        for slot, (request, token, logprob) in enumerate(zip(requests, tokens, logprobs, strict=True), first):
            if self.ending.add(request, int(token), logprob):
                ended.append(slot)
        return self._remove(ended)

    def _remove(self, ended: list[int]) -> list[Request]:
        """Remove the requests in these slots; the last requests move into the slots that become free before them."""
        gone = set(ended)
        keep = len(self.requests) - len(gone)
        holes = [slot for slot in ended if slot < keep]
        movers = [slot for slot in range(keep, len(self.requests)) if slot not in gone]
        removed = [self.requests[slot] for slot in ended]
        self.cache.copy(movers, holes)
        for hole, mover in zip(holes, movers, strict=True):
            self.requests[hole] = self.requests[mover]
        del self.requests[keep:]
        return removed
