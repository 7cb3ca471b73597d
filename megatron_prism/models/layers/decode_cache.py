"""The cache of a generation batch: each text has a slot, in which every layer keeps its keys and values or Mamba
states.

The tokens of a forward pass form one row `[1, tokens]`, whichever texts they belong to, so the token-wise parts of a
model need no padding. There are three kinds of forward pass. `Prefill` reads whole prompts, one after another in the
row: attention and Mamba treat them separately (segments.py) and store the states for the next token in their slots.
`Decode` takes one token of each of the first `count` slots, each at its own position. So texts can start and end at any
time, and a freed slot is used again. `Branches` reads several continuations of texts that are in slots, and stores
nothing: the answers to a question are compared without reading the question once for each.

Megatron-Core has a dynamic inference context with the same purpose, but its paged memory needs GPU kernels. This cache
is simpler and runs anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_prism.errors import ConfigError
from megatron_prism.models.layers.segments import Segments

# Name of the attribute through which a module reaches the cache.
CACHE = "decode_cache"
# The capacity for keys and values grows in steps of this many tokens.
COLUMNS = 64


@dataclass(frozen=True)
class Prefill:
    """A forward pass over whole prompts in one row.

    Attributes:
        segments: the texts of the row; those after the first `len(slots)` are padding.
        slots: `[prompts]`, the slot of each prompt; None: no state is stored.
        positions: `[tokens]`, of each token in its text.
        outputs: indices in the row of the tokens that need logits, by default each prompt's last token.
    """

    segments: Segments
    slots: Tensor | None
    positions: Tensor
    outputs: Tensor

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        slots: Sequence[int] | None,
        row_length: int,
        device: torch.device,
        outputs: Sequence[int] | None = None,
    ) -> Prefill:
        segments = Segments(lengths, row_length, device)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        return cls(
            segments,
            None if slots is None else torch.tensor(slots, device=device),
            _positions(segments, device),
            last if outputs is None else torch.tensor(outputs, dtype=torch.long, device=device),
        )


@dataclass(frozen=True)
class Branches:
    """A forward pass over continuations of texts that are in slots; nothing is stored.

    Attributes:
        segments: the branches of the row, and the padding after them.
        slots: `[segments]`, the slot that each branch continues.
        before: `[segments]`, number of tokens in that slot.
        longest: the largest of `before`.
        positions: `[tokens]`, of each token in its whole text.
        outputs: indices in the row of the tokens that need logits.
    """

    segments: Segments
    slots: Tensor
    before: Tensor
    longest: int
    positions: Tensor
    outputs: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        slots: Sequence[int],
        before: Sequence[int],
        *,
        row_length: int,
        outputs: Sequence[int],
        device: torch.device,
    ) -> Branches:
        segments = Segments(lengths, row_length, device)
        # The padding continues the first slot after no token of it.
        rest = [0] * (len(segments.lengths) - len(lengths))
        starts = torch.tensor([*before, *rest], device=device)
        offsets = _positions(segments, device)
        return cls(
            segments,
            torch.tensor([*slots, *rest], device=device),
            starts,
            max(before),
            offsets + torch.repeat_interleave(starts, torch.tensor(segments.lengths, device=device)),
            torch.tensor(outputs, device=device),
        )

    def mask(self, window: int | None) -> Tensor:
        """What each token attends to, bool `[segments, 1, longest branch, longest + longest branch]`.

        Args:
            window: number of earlier tokens that are visible; None: all.
        """
        if window not in self._masks:
            device, own = self.before.device, max(self.segments.lengths)
            query = torch.arange(own, device=device)[:, None]
            # The position of each column, relative to the first token of the branch.
            cached = torch.arange(self.longest, device=device) - self.before[:, None, None]
            fresh = torch.arange(own, device=device).expand(len(self.before), 1, own)
            columns = torch.cat([cached, fresh], -1)
            stored = torch.arange(self.longest + own, device=device) < self.longest
            visible = (columns <= query) & ~(stored & (columns >= 0))
            if window is not None:
                visible &= columns >= query - window
            self._masks[window] = visible[:, None]
        return self._masks[window]


@dataclass(frozen=True)
class Decode:
    """A forward pass over one token of each of the first `count` slots.

    Attributes:
        positions: `[count]`, of each token in its text.
        length: length of the longest text, this token included.
    """

    count: int
    positions: Tensor
    length: int
    outputs: Tensor | None = None
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def bias(self, window: int | None) -> Tensor:
        """Attention bias `[count, 1, 1, length]` in fp32: 0 for the positions a token attends to, -inf for the others.

        Args:
            window: number of earlier tokens that are visible; None: all.
        """
        if window not in self._biases:
            columns = torch.arange(self.length, device=self.positions.device)
            hidden = columns > self.positions[:, None]
            if window is not None:
                hidden |= columns < self.positions[:, None] - window
            bias = torch.zeros(hidden.shape, device=hidden.device)
            self._biases[window] = bias.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._biases[window]


@dataclass(frozen=True)
class Reduction:
    """Turns the logits of a few outputs at a time into what is needed of them, so that all logits never exist at once.

    Attributes:
        rows: number of outputs whose logits are made together.
        reduce: takes logits `[rows, vocabulary]` and the index of the first of these outputs; returns `[rows, n]`.
    """

    rows: int
    reduce: Callable[[Tensor, int], Tensor]


class DecodeCache:
    """The slots of a generation batch, and the forward pass that uses them next.

    Args:
        slots: maximum number of texts in the batch.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.columns = slots, 0
        self.step: Prefill | Decode | Branches | None = None
        self.angles: Tensor | None = None
        # What the model returns instead of logits, made from pieces of them (`Reduction`).
        self.reduction: Reduction | None = None
        # The tensors of each layer; dimension 0 is the slot.
        self._tensors: dict[nn.Module, list[Tensor]] = {}

    def prepare(self, step: Prefill | Decode | Branches, length: int) -> None:
        """Set the next forward pass; all its positions are below `length`."""
        self.step = step
        if length > self.columns:
            self.columns = -(-max(length, self.columns * 5 // 4) // COLUMNS) * COLUMNS

    def tensors(
        self,
        module: nn.Module,
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[torch.dtype],
        device: torch.device,
    ) -> list[Tensor]:
        """The tensors of a module, `[slots, *shape]` each; the first call creates them, filled with zeros."""
        if module not in self._tensors:
            self._tensors[module] = [
                torch.zeros(self.slots, *shape, dtype=dtype, device=device)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        return self._tensors[module]

    def keys_and_values(self, module: nn.Module, like: Tensor) -> list[Tensor]:
        """Keys and values of a module, `[slots, groups, columns, head_dim]`; `like` is `[..., groups, head_dim]`."""
        groups, size = like.shape[-2:]
        found = self.tensors(module, [(groups, self.columns, size)] * 2, [like.dtype] * 2, like.device)
        if found[0].shape[2] < self.columns:
            more = self.columns - found[0].shape[2]
            found[:] = [F.pad(tensor, (0, 0, 0, more)) for tensor in found]
        return found

    def held(self) -> list[Tensor]:
        """The tensors of all modules."""
        return [tensor for tensors in self._tensors.values() for tensor in tensors]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the contents of the slots `sources` into the slots `targets`, in every layer."""
        if not sources:
            return
        slots: Tensor | None = None
        for tensors in self._tensors.values():
            for tensor in tensors:
                if slots is None:
                    slots = torch.tensor([list(sources), list(targets)], device=tensor.device)
                tensor[slots[1]] = tensor[slots[0]]


def _positions(segments: Segments, device: torch.device) -> Tensor:
    """`[tokens]`, of each token in its segment."""
    return torch.cat([torch.arange(size, device=device) for size in segments.lengths])


def install_decode_cache(model: nn.Module) -> None:
    """Prepare an unwrapped model chunk for generation; it uses a cache once `set_decode_cache` has set one.

    Raises:
        ConfigError: for layers of another backend, which have no cache.
    """
    for module in model.modules():
        if (hasattr(module, "core_attention") and not hasattr(module.core_attention, CACHE)) or (
            hasattr(module, "d_inner_local_tp") and not hasattr(module, CACHE)
        ):
            raise ConfigError(
                "backend=te: sampling needs the torch layers; build the model with backend=torch"
            )
    rotary, output = getattr(model, "rotary_pos_emb", None), getattr(model, "output_layer", None)
    if isinstance(rotary, nn.Module) and not hasattr(rotary, CACHE):
        rotary.decode_cache = None  # type: ignore[assignment]
        rotary.forward = partial(_angles, rotary, rotary.forward)
    if isinstance(output, nn.Module) and not hasattr(output, CACHE):
        output.decode_cache = None  # type: ignore[assignment]
        output.forward = partial(_reduced, output, output.forward)
        output.register_forward_pre_hook(_last_tokens, with_kwargs=True)
        output.register_forward_hook(_restore_sequence_parallel, always_call=True)


def set_decode_cache(model: nn.Module, cache: DecodeCache | None) -> None:
    """Let the next forward passes of this chunk use the cache; None: process whole texts again."""
    for module in model.modules():
        if hasattr(module, CACHE):
            setattr(module, CACHE, cache)


def _angles(rotary: Any, original: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
    """Rotary angles `[tokens, 1, 1, head_dim]`; with a cache, those of each token's position in its own text."""
    cache: DecodeCache | None = rotary.decode_cache
    if cache is None:
        return original(*arguments, **keywords)
    assert cache.step is not None
    if cache.angles is None or cache.angles.shape[0] < cache.columns:
        # packed_seq=True, because context parallelism would otherwise split the table.
        cache.angles = original(cache.columns, packed_seq=True)
    return cache.angles[cache.step.positions]


def _last_tokens(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Reduce hidden states `[tokens, 1, hidden]` to those whose logits are needed."""
    cache: DecodeCache | None = module.decode_cache
    if cache is None or cache.step is None or cache.step.outputs is None:
        return None
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    hidden = inputs[0]
    if module.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        module.sequence_parallel, module.was_sequence_parallel = False, True
    return (hidden[cache.step.outputs], *inputs[1:]), keywords


def _reduced(module: Any, original: Callable[..., Any], hidden: Tensor, *inputs: Any, **keywords: Any) -> Any:
    """Logits `[outputs, 1, vocabulary]`, or the cache's reduction of them."""
    cache: DecodeCache | None = module.decode_cache
    if cache is None or cache.reduction is None:
        return original(hidden, *inputs, **keywords)
    rows, reduce = cache.reduction.rows, cache.reduction.reduce
    pieces = [
        reduce(original(hidden[first : first + rows], *inputs, **keywords)[0][:, 0], first)
        for first in range(0, len(hidden), rows)
    ]
    # Without outputs there are no pieces.
    return torch.cat(pieces or [hidden.new_empty(0, 0)])[:, None], None


def _restore_sequence_parallel(module: Any, inputs: Any, output: Any) -> None:
    if getattr(module, "was_sequence_parallel", False):
        module.sequence_parallel, module.was_sequence_parallel = True, False
