"""How probable given continuations of given contexts are, from a Megatron model in this process.

Texts are packed one after another into a row, sorted by length (models/layers/decode_cache.py), and only the tokens
whose logits are needed get any. What several texts share at their beginning, a question before its answers or examples
before many questions, is read once, and the rest as branches of it (likelihood_plan.py).

Truncation is that of lm-evaluation-harness: the model reads the last `context_length` tokens of context and
continuation, without the continuation's last token, which nothing is predicted from.

Under tensor and pipeline parallelism, the ranks of a model call these functions together with the same arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from megatron_prism.generation.engine import Likelihood, Progress
from megatron_prism.generation.likelihood_plan import Pair, Text, batches, places_of, plan_texts
from megatron_prism.generation.pipeline_forward import broadcast_to_model_ranks, pipeline_forward
from megatron_prism.models.layers.decode_cache import (
    Branches,
    DecodeCache,
    Prefill,
    Reduction,
    set_decode_cache,
)

# Logits that exist at the same time, in numbers: 256 MiB in fp32. On a CPU 2 MiB, which stay in its cache: 8,192 rows
# of 2,048 take 75 ms instead of 137. Fewer rows than `FEWEST_ROWS` would read the weights too often.
LOGITS, LOGITS_IN_CACHE, FEWEST_ROWS = 2**26, 2**19, 64
# On a CPU a longer row leaves the cache, too.
TOKENS_IN_CACHE = 4096
# Branches copy the keys and values of what they continue: the maximum number of tokens whose copies exist together.
BRANCH_COLUMNS = 2**16


def log_likelihoods(
    models: Sequence[Any],
    pairs: Sequence[Pair],
    context_length: int,
    *,
    batch_tokens: int,
    progress: Progress,
) -> list[Likelihood]:
    """The likelihood of each pair's continuation, in order; `progress` gets the number of pairs that just finished.

    Args:
        models: this rank's chunks, prepared by `install_decode_cache`.
        batch_tokens: maximum number of tokens of a forward pass, padding included, and at most 4,096 on a CPU; a longer
            text is read alone.

    Raises:
        DataError: for an empty context or continuation, or a continuation longer than `context_length`.
    """
    texts = plan_texts(pairs, context_length)
    reader = _Reader(models, len(pairs))
    if not reader.device_memory:
        batch_tokens = min(batch_tokens, TOKENS_IN_CACHE)
    modes = [chunk.training for chunk in models]
    for chunk in models:
        chunk.eval()
    try:
        # Texts with branches apart, because only their states are kept.
        for branched in (False, True):
            chosen = [text for text in texts if bool(text.branches) is branched]
            for batch in batches(chosen, batch_tokens):
                progress(reader.read(batch, batch_tokens))
    finally:
        for chunk, training in zip(models, modes, strict=True):
            set_decode_cache(chunk, None)
            chunk.train(training)
    return reader.likelihoods()


class _Reader:
    """Reads batches of texts and adds up the log-probabilities of the pairs."""

    def __init__(self, models: Sequence[Any], pairs: int) -> None:
        self.models = models
        weight = next(models[0].parameters())
        self.device, self.device_memory = weight.device, weight.is_cuda
        config = models[0].config
        # Sequence parallelism splits a row into equal parts.
        self.multiple = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self.vocabulary = models[0].unpadded_vocab_size
        logits = LOGITS if self.device_memory else LOGITS_IN_CACHE
        self.logit_rows = max(FEWEST_ROWS, logits // self.vocabulary)
        self.sums = numpy.zeros(pairs)
        self.greedy = numpy.ones(pairs, bool)

    def likelihoods(self) -> list[Likelihood]:
        return [
            Likelihood(logprob, greedy)
            for logprob, greedy in zip(self.sums.tolist(), self.greedy.tolist(), strict=True)
        ]

    def read(self, texts: list[Text], batch_tokens: int) -> int:
        """Read texts and their branches; returns the number of pairs that are finished."""
        cache = DecodeCache(len(texts))
        for chunk in self.models:
            set_decode_cache(chunk, cache)
        lengths = [len(text) for text in texts]
        slots = list(range(len(texts))) if texts[0].branches else None
        row = self._padded(sum(lengths))
        step = Prefill.of(lengths, slots, row, self.device, places_of(texts))
        self._forward(cache, step, texts, max(*lengths, row - sum(lengths)))
        branches = [(slot, branch) for slot, text in enumerate(texts) for branch in text.branches]
        branches.sort(key=lambda pair: len(pair[1]), reverse=True)
        while branches:
            # As in `batches`, and the copies of the texts' keys and values are limited, too.
            count = min(
                batch_tokens // len(branches[0][1]), BRANCH_COLUMNS // (lengths[0] + len(branches[0][1]))
            )
            self._read_branches(cache, branches[: max(1, count)], lengths)
            del branches[: max(1, count)]
        return len(set[int]().union(*(text.pairs() for text in texts)))

    def _read_branches(
        self, cache: DecodeCache, branches: Sequence[tuple[int, Text]], lengths: Sequence[int]
    ) -> None:
        slots, texts = [slot for slot, _ in branches], [branch for _, branch in branches]
        sizes = [len(text) for text in texts]
        row = self._padded(sum(sizes))
        step = Branches.of(
            sizes,
            slots,
            [lengths[slot] for slot in slots],
            row_length=row,
            outputs=places_of(texts),
            device=self.device,
        )
        self._forward(cache, step, texts, step.longest + max(*sizes, row - sum(sizes)))

    def _padded(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple

    # Not inference_mode: the model keeps its rotary tables, and training could not save inference tensors.
    @torch.no_grad()
    def _forward(
        self, cache: DecodeCache, step: Prefill | Branches, texts: Sequence[Text], length: int
    ) -> None:
        """Read texts and count the targets of their outputs."""
        outputs = [output for text in texts for output in text.outputs]
        width = max((len(output.targets) for output in outputs), default=0)
        wanted = torch.tensor(
            [
                [token for _, token in output.targets] + [0] * (width - len(output.targets))
                for output in outputs
            ],
            device=self.device,
        )
        tokens = [token for text in texts for token in text.token_ids]
        tokens += [0] * (len(step.positions) - len(tokens))
        cache.prepare(step, length)
        cache.reduction = Reduction(
            self.logit_rows,
            lambda logits, first: _scores(
                logits[:, : self.vocabulary].float(), wanted[first : first + len(logits)]
            ),
        )
        scores = pipeline_forward(self.models, torch.tensor([tokens], device=self.device))
        if not outputs:
            return
        if scores is None:
            scores = torch.empty(len(outputs), 2 * width, device=self.device)
        broadcast_to_model_ranks(scores)
        logprobs, greedy = scores.double().cpu().numpy().reshape(len(outputs), 2, width).transpose(1, 0, 2)
        used = numpy.arange(width) < numpy.array([[len(output.targets)] for output in outputs])
        numbers = numpy.array([number for output in outputs for number, _ in output.targets])
        numpy.add.at(self.sums, numbers, logprobs[used])
        numpy.logical_and.at(self.greedy, numbers, greedy[used] > 0)


def _scores(logits: Tensor, wanted: Tensor) -> Tensor:
    """Log-probabilities of `wanted` `[rows, n]`, and 1 where it is the largest logit: `[rows, 2 n]` in fp32."""
    logprobs = torch.log_softmax(logits, 1).gather(1, wanted)
    # The index of the largest takes seven times as long as the largest, so only rows get it in which it may be wanted.
    greedy = logits.gather(1, wanted) == logits.amax(1, keepdim=True)
    likely = greedy.any(1).nonzero()[:, 0]
    greedy[likely] &= wanted[likely] == logits[likely].argmax(1, keepdim=True)
    return torch.cat([logprobs, greedy.float()], 1)
