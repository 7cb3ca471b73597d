"""Sampling from a Megatron model in this process, on Megatron's static inference context.

Nothing is padded, so attention needs no mask and Mamba's states hold exactly the text. A batch of prompts of similar
length is read at once up to the length of its shortest; the longer ones then read on, token by token, while the others
already answer. A sample's random numbers depend on the seed and its place in the request, not on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.generation.engine import (
    Completion,
    FinishReason,
    SamplingParams,
    check_prompts,
    cut_at_stop,
)

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer

# A byte-level token may hold part of a character: look this many tokens further back than a stop string.
STOP_MARGIN = 4


@dataclass
class _Row:
    """One sample being drawn: whose it is, its prompt, its random numbers, and what was drawn so far.

    `draws` holds one number in [0, 1) per token that may be drawn; the row ends when they are used up.
    """

    prompt: int
    sample: int
    prompt_ids: list[int]
    draws: list[float]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def draw(self, length: int) -> float:
        """The random number for the token after `length` tokens of text; none is used inside the prompt."""
        place = length - len(self.prompt_ids)
        return self.draws[place] if 0 <= place < len(self.draws) else 0.0


def sample_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row by inverting the cumulative distribution at `uniform`.

    Args:
        logits: `[batch, vocabulary]`, fp32.
        uniform: `[batch]` in [0, 1), float64.
        temperature: 0 takes the largest logit.
        top_p: only the smallest set of most probable tokens that reaches this mass is drawn from
            (nucleus sampling, arXiv 1904.09751).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / temperature, -1)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    # The first token whose cumulative mass exceeds the draw; one of probability zero never does so first.
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    last = (probabilities > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    drawn = torch.minimum(drawn, last)
    return (drawn if order is None else order.gather(-1, drawn))[:, 0]


class MegatronEngine:
    """Samples from a model of this process.

    Args:
        model: a whole GPTModel or MambaModel on the device it computes on.
        tokenizer: rows of the model's vocabulary beyond its size are never sampled and carry no probability.
        batch_size: most samples decoded at once.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be 1 or more")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._device = next(model.parameters()).device
        self._mamba = [module for module in model.modules() if hasattr(module, "cached_batch_size")]

    @classmethod
    @contextmanager
    def load(
        cls, train_artifact_folder: Path, tokenizer_folder: Path, batch_size: int = 64
    ) -> Iterator[MegatronEngine]:
        """An engine on a train artifact's weights, in bf16 on a GPU and fp32 elsewhere."""
        from megatron_prism.conversion.checkpoint_io import load_weights
        from megatron_prism.data.tokenizer import Tokenizer
        from megatron_prism.models.architecture import Architecture
        from megatron_prism.models.build import build_model
        from megatron_prism.platform.hardware import device, has_gpu
        from megatron_prism.platform.process_groups import session

        architecture = Architecture.load(Path(train_artifact_folder) / "architecture.json")
        tokenizer = Tokenizer.load(Path(tokenizer_folder))
        if tokenizer.vocab_size > architecture.vocab_size:
            raise DataError(
                f"{tokenizer_folder}: {tokenizer.vocab_size} tokens, but {train_artifact_folder} "
                f"has vocab_size={architecture.vocab_size}; use the tokenizer it was trained with"
            )
        with session():
            model = build_model(architecture, dtype=torch.bfloat16 if has_gpu() else torch.float32).to(
                device()
            )
            load_weights([model], Path(train_artifact_folder) / "checkpoint")
            yield cls(model, tokenizer, batch_size)

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams,
        samples: int = 1,
        progress: Callable[[int], None] = lambda finished: None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order; `progress` gets the number that just finished.

        A completion is clipped where prompt and completion would exceed the model's max_position_embeddings.

        Raises:
            DataError: for a prompt that is empty, or leaves no room for a single token.
        """
        encoded = self.tokenizer.encode_batch(list(prompts))
        limit = self.model.max_sequence_length
        check_prompts(prompts, encoded, limit)
        rows = []
        seeds = torch.Generator().manual_seed(params.seed)
        for index, token_ids in enumerate(encoded):
            room = min(params.max_new_tokens, limit - len(token_ids))
            for sample in range(samples):
                generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=seeds)))
                draws = torch.rand(room, generator=generator, dtype=torch.float64).tolist()
                rows.append(_Row(index, sample, token_ids, draws))
        # Like lengths together: the shorter the longest prompt's way past the shortest, the better.
        rows.sort(key=lambda row: len(row.prompt_ids))

        finished: dict[tuple[int, int], Completion] = {}
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                self._decode(batch, params)
                finished |= {(row.prompt, row.sample): self._completion(row, params) for row in batch}
                progress(len(batch))
        finally:
            self.model.train(training)
        return [[finished[index, sample] for sample in range(samples)] for index in range(len(prompts))]

    # Not inference_mode: Megatron caches rotary tables, and training could not save inference tensors.
    @torch.no_grad()
    def _decode(self, rows: list[_Row], params: SamplingParams) -> None:
        """Draw every row to its end; `rows` are sorted by the length of their prompts."""
        from megatron.core.inference.contexts import StaticInferenceContext

        shortest = len(rows[0].prompt_ids)
        context = StaticInferenceContext(len(rows), max(len(row.prompt_ids) + len(row.draws) for row in rows))
        tokens = torch.tensor([row.prompt_ids[:shortest] for row in rows], device=self._device)
        alive, offset = list(rows), 0
        while True:
            logits = self._forward(tokens, context, offset)
            offset += tokens.shape[1]
            uniform = torch.tensor([row.draw(offset) for row in alive], dtype=torch.float64)
            chosen = sample_tokens(logits, uniform.to(self._device), params.temperature, params.top_p)
            logprobs = torch.log_softmax(logits, -1).gather(-1, chosen[:, None])[:, 0].tolist()
            following = chosen.tolist()
            for index, row in enumerate(alive):
                if offset < len(row.prompt_ids):
                    following[index] = row.prompt_ids[offset]
                elif row.finish_reason is None:
                    row.token_ids.append(following[index])
                    row.logprobs.append(logprobs[index])
                    row.finish_reason = self._finish_reason(row, params)
            keep = [index for index, row in enumerate(alive) if row.finish_reason is None]
            if not keep:
                return
            tokens = torch.tensor(following, device=self._device)[:, None]
            if 2 * len(keep) < len(alive):
                alive, tokens = [alive[index] for index in keep], tokens[keep]
                self._compact(context, keep)

    def _forward(self, tokens: Tensor, context: Any, offset: int) -> Tensor:
        """fp32 logits `[batch, vocabulary]` after `tokens` `[batch, seq]`, which start at `offset`."""
        context.sequence_len_offset = offset
        if offset:
            context.enable_decode_mode()
        positions = torch.arange(offset, offset + tokens.shape[1], device=tokens.device).expand_as(tokens)
        logits = self.model(tokens, positions, None, inference_context=context, runtime_gather_output=True)
        last: Tensor = logits[:, -1, : self.tokenizer.vocab_size].float()
        return last

    def _compact(self, context: Any, keep: list[int]) -> None:
        """Keep these rows of every cache: dimension 0 of Mamba's states, dimension 1 of keys and values."""
        index = torch.tensor(keep, device=self._device)
        mamba = {module.layer_number for module in self._mamba}
        for layer, caches in context.key_value_memory_dict.items():
            dimension = 0 if layer in mamba else 1
            context.key_value_memory_dict[layer] = tuple(
                cache.index_select(dimension, index) for cache in caches
            )
        for module in self._mamba:
            # The mixer throws its states away when the batch is not of the size it remembers.
            module.cached_batch_size = len(keep)
        context.max_batch_size = len(keep)

    def _finish_reason(self, row: _Row, params: SamplingParams) -> FinishReason | None:
        if row.token_ids[-1] == self.tokenizer.eos_id:
            return "stop"
        if params.stop:
            # Every token is at least one byte, so a stop string spans at most as many tokens as it has bytes.
            tail = max(len(stop.encode()) for stop in params.stop) + STOP_MARGIN
            text = self.tokenizer.decode(row.token_ids[-tail:])
            if any(stop in text for stop in params.stop):
                return "stop"
        return "length" if len(row.token_ids) == len(row.draws) else None

    def _completion(self, row: _Row, params: SamplingParams) -> Completion:
        ended = row.token_ids[-1] == self.tokenizer.eos_id
        text = self.tokenizer.decode(row.token_ids[:-1] if ended else row.token_ids)
        return Completion(
            text=cut_at_stop(text, params.stop),
            token_ids=row.token_ids,
            logprobs=row.logprobs,
            finish_reason=row.finish_reason or "length",
        )
