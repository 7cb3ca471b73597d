"""Sampling from a Megatron model in this process, with continuous batching.

Every text that is being sampled has a slot (models/layers/slots.py). A text that ends gives its slot to the next one in
the queue, so the batch stays full until the queue is empty, however uneven the lengths. A prompt is read once for all
its samples. A sample's random numbers depend on the prompt's seed and its number, not on the batch.

Under tensor and pipeline parallelism the ranks of a model call `generate` together with the same arguments. Ranks that
differ only in context parallelism hold whole models here, and may sample different prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.generation.engine import (
    Completion,
    FinishReason,
    SamplingParams,
    check_prompts,
    cut_at_stop,
    prompt_seeds,
)
from megatron_prism.generation.sampling import sample_tokens, uniform_numbers
from megatron_prism.generation.stages import through_stages
from megatron_prism.models.layers.slots import Drawing, Reading, Slots, install_slots, set_slots

if TYPE_CHECKING:
    from megatron_prism.data.text_policy import TextSettings
    from megatron_prism.data.tokenizer import Tokenizer

# A byte-level token may hold part of a character: look this many tokens further back than a stop string.
STOP_MARGIN = 4
# New texts wait until this share of the slots is free: reading one prompt costs nearly as much as reading several.
ADMIT_SHARE = 1 / 8
# Most tokens of prompts read in one forward (a longer prompt is read alone).
READ_TOKENS = 4096


@dataclass
class _Text:
    """One sample being drawn: whose it is, and what was drawn so far; it ends after `room` tokens."""

    prompt: int
    sample: int
    prompt_ids: list[int]
    room: int
    numbers: Iterator[float]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


class MegatronEngine:
    """Samples from a model of this process.

    Args:
        model: a GPTModel or MambaModel of the torch backend on the device it computes on, or this rank's chunks of one.
        tokenizer: rows of the model's vocabulary beyond its size are never sampled and carry no probability.
        batch_size: most samples under way at once.
        context_length: most tokens of prompt and completion; None: the model's max_position_embeddings.

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
            install_slots(chunk)

    @classmethod
    @contextmanager
    def load(
        cls,
        train_artifact_folder: Path,
        tokenizer_folder: Path,
        batch_size: int = 64,
        text: TextSettings | None = None,
    ) -> Iterator[MegatronEngine]:
        """An engine on a train artifact's weights, in bf16 on a GPU and fp32 elsewhere.

        Args:
            text: how prompts begin, where that is not as the tokenizer's files say.
        """
        from megatron_prism.conversion.checkpoint_io import load_weights
        from megatron_prism.data.tokenizer import Tokenizer
        from megatron_prism.models.architecture import Architecture
        from megatron_prism.models.build import build_model
        from megatron_prism.platform.hardware import device, has_gpu
        from megatron_prism.platform.process_groups import session

        architecture = Architecture.load(Path(train_artifact_folder) / "architecture.json")
        tokenizer = Tokenizer.load(Path(tokenizer_folder), text)
        if tokenizer.vocab_size > architecture.vocab_size:
            raise DataError(
                f"{tokenizer_folder}: {tokenizer.vocab_size} tokens, but {train_artifact_folder} "
                f"has vocab_size={architecture.vocab_size}; use the tokenizer it was trained with"
            )
        with session():
            dtype = torch.bfloat16 if has_gpu() else torch.float32
            model = build_model(architecture, dtype=dtype, backend="torch").to(device())
            load_weights([model], Path(train_artifact_folder) / "checkpoint")
            yield cls(model, tokenizer, batch_size)

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams,
        samples: int = 1,
        progress: Callable[[int], None] = lambda finished: None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order; `progress` gets the number that just finished.

        A completion is clipped where prompt and completion would exceed the context length.

        Raises:
            DataError: for a prompt that is empty, or leaves no room for a single token.
        """
        seeds = prompt_seeds(params.seed, prompts) if seeds is None else seeds
        queue = deque(self._texts(prompts, params, samples, seeds))
        finished: dict[tuple[int, int], Completion] = {}
        modes = [chunk.training for chunk in self.models]
        batch = _Batch(self, params, min(self.batch_size, len(queue)))
        for chunk in self.models:
            chunk.eval()
            set_slots(chunk, batch.slots)
        try:
            while queue or batch.texts:
                ended = batch.admit(queue) or batch.step()
                finished |= {(text.prompt, text.sample): self._completion(text, params) for text in ended}
                if ended:
                    progress(len(ended))
        finally:
            for chunk, training in zip(self.models, modes, strict=True):
                set_slots(chunk, None)
                chunk.train(training)
        return [[finished[index, sample] for sample in range(samples)] for index in range(len(prompts))]

    def _texts(
        self, prompts: Sequence[str], params: SamplingParams, samples: int, seeds: Sequence[int]
    ) -> Iterator[_Text]:
        limit = self.context_length
        encoded = self.tokenizer.encode_batch(list(prompts))
        check_prompts(prompts, encoded, limit)
        for index, token_ids in enumerate(encoded):
            room = min(params.max_new_tokens, limit - len(token_ids))
            for sample in range(samples):
                yield _Text(index, sample, token_ids, room, uniform_numbers(seeds[index], sample))

    def _completion(self, text: _Text, params: SamplingParams) -> Completion:
        ended = text.token_ids[-1] == self.tokenizer.eos_id
        said = self.tokenizer.decode(text.token_ids[:-1] if ended else text.token_ids)
        return Completion(
            text=cut_at_stop(said, params.stop),
            token_ids=text.token_ids,
            logprobs=text.logprobs,
            finish_reason=text.finish_reason,
        )


class _Batch:
    """The texts under way; the text in slot i is `texts[i]`, and the free slots come after them."""

    def __init__(self, engine: MegatronEngine, params: SamplingParams, size: int) -> None:
        config = engine.models[0].config
        self.engine, self.params, self.size = engine, params, size
        self.device, self.vocabulary = engine._device, engine.tokenizer.vocab_size
        # Sequence parallelism cuts a row into equal parts; a row of few texts is filled up with free slots.
        self.multiple = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self.slots = Slots(self._padded(size))
        self.texts: list[_Text] = []
        self.may_end = _tokens_that_may_end(engine.tokenizer, params)

    def admit(self, queue: deque[_Text]) -> list[_Text]:
        """Give free slots to texts of the queue, read their prompts, and draw their first tokens; those that ended."""
        free = self.size - len(self.texts)
        if not queue or (self.texts and free < self.size * ADMIT_SHARE):
            return []
        new: list[_Text] = []
        prompts: dict[int, int] = {}
        tokens: list[int] = []
        while queue and len(new) < free:
            text = queue[0]
            if text.prompt not in prompts:
                if tokens and len(tokens) + len(text.prompt_ids) > READ_TOKENS:
                    break
                prompts[text.prompt] = len(self.texts) + len(new)
                tokens += text.prompt_ids
            new.append(queue.popleft())
        if not new:
            return []
        first = len(self.texts)
        self.texts += new
        lengths = [len(self.texts[slot].prompt_ids) for slot in prompts.values()]
        row = self._padded(len(tokens))
        step = Reading.of(lengths, list(prompts.values()), row, self.device)
        logits = self._forward(tokens + [0] * (row - len(tokens)), step, max(*lengths, row - len(tokens)))
        places = {prompt: place for place, prompt in enumerate(prompts)}
        copies = [(prompts[t.prompt], first + i) for i, t in enumerate(new) if prompts[t.prompt] != first + i]
        self.slots.copy([source for source, _ in copies], [target for _, target in copies])
        if logits is not None:
            logits = logits[[places[text.prompt] for text in new]]
        return self._draw(first, logits)

    def step(self) -> list[_Text]:
        """Draw a token of every text; returns those that ended."""
        count = self._padded(len(self.texts))
        padding = [0] * (count - len(self.texts))
        positions = [len(text.prompt_ids) + len(text.token_ids) - 1 for text in self.texts]
        reach = max(positions) + 1
        step = Drawing(count, torch.tensor(positions + padding, device=self.device), reach)
        logits = self._forward([text.token_ids[-1] for text in self.texts] + padding, step, reach)
        return self._draw(0, None if logits is None else logits[: len(self.texts)])

    def _padded(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple

    # Not inference_mode: rotary tables are kept, and training could not save inference tensors.
    @torch.no_grad()
    def _forward(self, tokens: list[int], step: Reading | Drawing, reach: int) -> Tensor | None:
        """fp32 logits of the tokenizer's vocabulary, a row per output; None before the last pipeline stage."""
        self.slots.prepare(step, reach)
        logits = through_stages(self.engine.models, torch.tensor([tokens], device=self.device))
        return None if logits is None else logits[:, : self.vocabulary].float()

    @torch.no_grad()
    def _draw(self, first: int, logits: Tensor | None) -> list[_Text]:
        """Draw the next token of the texts from slot `first` on, and remove the texts that end with it."""
        drawn = self.texts[first:]
        uniform = torch.tensor([next(text.numbers) for text in drawn], dtype=torch.float64).to(self.device)
        pairs = torch.empty(2, len(drawn), dtype=torch.float64, device=self.device)
        if logits is not None:
            pairs[0], pairs[1] = sample_tokens(logits, uniform, self.params.temperature, self.params.top_p)
        _agree(pairs)
        tokens, logprobs = pairs.tolist()
        ended = []
        for place, (text, token, logprob) in enumerate(zip(drawn, tokens, logprobs, strict=True)):
            text.token_ids.append(int(token))
            text.logprobs.append(logprob)
            if (self.may_end[int(token)] or len(text.token_ids) == text.room) and self._ends(text):
                ended.append(first + place)
        return self._remove(ended)

    def _ends(self, text: _Text) -> bool:
        if text.token_ids[-1] == self.engine.tokenizer.eos_id or self._stopped(text.token_ids):
            text.finish_reason = "stop"
            return True
        return len(text.token_ids) == text.room

    def _stopped(self, token_ids: list[int]) -> bool:
        if not self.params.stop:
            return False
        # Every token is at least one byte, so a stop string spans at most as many tokens as it has bytes.
        tail = max(len(stop.encode()) for stop in self.params.stop) + STOP_MARGIN
        said = self.engine.tokenizer.decode(token_ids[-tail:])
        return any(stop in said for stop in self.params.stop)

    def _remove(self, ended: list[int]) -> list[_Text]:
        """Take these slots' texts out; the last texts move into the slots that are not last."""
        gone = set(ended)
        keep = len(self.texts) - len(gone)
        holes = [slot for slot in ended if slot < keep]
        movers = [slot for slot in range(keep, len(self.texts)) if slot not in gone]
        removed = [self.texts[slot] for slot in ended]
        self.slots.copy(movers, holes)
        for hole, mover in zip(holes, movers, strict=True):
            self.texts[hole] = self.texts[mover]
        del self.texts[keep:]
        return removed


def _agree(pairs: Tensor) -> None:
    """What the last pipeline stage's first tensor-parallel rank drew, for all ranks of the model, in place."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    group = parallel_state.get_model_parallel_group()
    if group.size() > 1:
        size = parallel_state.get_tensor_model_parallel_world_size()
        dist.broadcast(pairs, group_src=group.size() - size, group=group)


def _tokens_that_may_end(tokenizer: Tokenizer, params: SamplingParams) -> Any:
    """Per token, whether a text may end with it: the end token, and those in which a stop string could end.

    Decoding the tail of every text after every token would cost more than drawing it.
    """
    flags = numpy.zeros(tokenizer.vocab_size, bool)
    flags[tokenizer.eos_id] = True
    last = {stop[-1] for stop in params.stop or [] if stop}
    if last:
        pieces = tokenizer.decode_each(range(tokenizer.vocab_size))
        # A part of a character decodes to the replacement character: it may complete any.
        hints = last | {"\N{REPLACEMENT CHARACTER}"}
        # Some tokenizers drop a space at the beginning of what they decode.
        flags |= numpy.array([any(c in piece or c.isspace() for c in hints) for piece in pieces])
    return flags.tolist()
