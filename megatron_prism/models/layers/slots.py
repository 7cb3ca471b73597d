"""Texts under way in a sampler: each has a slot, and every layer keeps the slot's keys and values or Mamba states.

The tokens of a forward stand in one row `[1, tokens]`, whatever texts they belong to, so nothing is padded in the
token-wise parts of a model. Two kinds of forward exist. `Reading` takes prompts, one after another in the row, keeps
them apart (segments.py) and leaves in their slots what the next token needs. `Drawing` takes one token of each of the
first `count` slots, each at its own position. So texts begin and end when they like, and a freed slot is used again.

Megatron-Core has a dynamic context with the same purpose. It pages its memory with kernels that need a GPU, so the
torch layers keep this simpler book, which runs anywhere.
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

# The modules that look at the slots carry them under this name.
SLOTS = "slots"
# Keys and values get room in steps of this many tokens.
COLUMNS = 64


@dataclass(frozen=True)
class Reading:
    """Prompts in a row.

    Attributes:
        segments: of the row; texts beyond `targets` are padding.
        targets: `[texts]`, the slot of each prompt.
        lengths: `[texts]`, in tokens.
        positions: `[tokens]`, of each token in its text.
        outputs: `[texts]`, where in the row each prompt ends: only there are logits needed.
    """

    segments: Segments
    targets: Tensor
    lengths: Tensor
    positions: Tensor
    outputs: Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], targets: Sequence[int], row_length: int, device: torch.device
    ) -> Reading:
        sizes = torch.tensor(lengths, device=device)
        segments = Segments(lengths, row_length, device)
        positions = torch.cat([torch.arange(size, device=device) for size in segments.lengths])
        return cls(segments, torch.tensor(targets, device=device), sizes, positions, sizes.cumsum(0) - 1)


@dataclass(frozen=True)
class Drawing:
    """One token of each of the first `count` slots.

    Attributes:
        positions: `[count]`, of each token in its text.
        reach: one more than the highest of them.
    """

    count: int
    positions: Tensor
    reach: int
    outputs: Tensor | None = None
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def bias(self, window: int | None) -> Tensor:
        """0 for the columns a text's token attends to and -inf for others, `[count, 1, 1, reach]` in fp32.

        Args:
            window: how far back it looks, itself not counted; None: to the beginning.
        """
        if window not in self._biases:
            columns = torch.arange(self.reach, device=self.positions.device)
            hidden = columns > self.positions[:, None]
            if window is not None:
                hidden |= columns < self.positions[:, None] - window
            bias = torch.zeros(hidden.shape, device=hidden.device)
            self._biases[window] = bias.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._biases[window]


class Slots:
    """The slots of a sampler, and what the next forward does with them.

    Args:
        count: how many texts can be under way.
    """

    def __init__(self, count: int) -> None:
        self.count, self.columns = count, 0
        self.step: Reading | Drawing | None = None
        self.angles: Tensor | None = None
        # Per layer its tensors, with the slot as dimension 0.
        self._kept: dict[nn.Module, list[Tensor]] = {}

    def prepare(self, step: Reading | Drawing, reach: int) -> None:
        """The next forward is `step`; no position of it is `reach` or more."""
        self.step = step
        if reach > self.columns:
            self.columns = -(-max(reach, self.columns * 5 // 4) // COLUMNS) * COLUMNS

    def kept(
        self,
        module: nn.Module,
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[torch.dtype],
        device: torch.device,
    ) -> list[Tensor]:
        """Zeroed tensors of a module, `[slots, *shape]` each, made at its first call."""
        if module not in self._kept:
            self._kept[module] = [
                torch.zeros(self.count, *shape, dtype=dtype, device=device)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        return self._kept[module]

    def keys_and_values(self, module: nn.Module, like: Tensor) -> list[Tensor]:
        """Keys and values of a module, `[slots, groups, columns, head_dim]`; `like` is `[..., groups, head_dim]`."""
        groups, size = like.shape[-2:]
        found = self.kept(module, [(groups, self.columns, size)] * 2, [like.dtype] * 2, like.device)
        if found[0].shape[2] < self.columns:
            more = self.columns - found[0].shape[2]
            found[:] = [F.pad(tensor, (0, 0, 0, more)) for tensor in found]
        return found

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """What the slots `sources` hold, into the slots `targets`, in every layer."""
        if not sources:
            return
        places: Tensor | None = None
        for tensors in self._kept.values():
            for tensor in tensors:
                if places is None:
                    places = torch.tensor([list(sources), list(targets)], device=tensor.device)
                tensor[places[1]] = tensor[places[0]]


def install_slots(model: nn.Module) -> None:
    """Teach a model (an unwrapped chunk) to look at slots; it does so once `set_slots` has given it some.

    Raises:
        ConfigError: for layers of another backend, which keep no slots.
    """
    for module in model.modules():
        if (hasattr(module, "core_attention") and not hasattr(module.core_attention, SLOTS)) or (
            hasattr(module, "d_inner_local_tp") and not hasattr(module, SLOTS)
        ):
            raise ConfigError("backend=te: sampling works with the torch layers; build it with backend=torch")
    rotary, output = getattr(model, "rotary_pos_emb", None), getattr(model, "output_layer", None)
    if isinstance(rotary, nn.Module) and not hasattr(rotary, SLOTS):
        rotary.slots = None  # type: ignore[assignment]
        rotary.forward = partial(_angles, rotary, rotary.forward)
    if isinstance(output, nn.Module) and not hasattr(output, SLOTS):
        output.slots = None  # type: ignore[assignment]
        output.register_forward_pre_hook(_last_tokens, with_kwargs=True)
        output.register_forward_hook(_restore_sequence_parallel, always_call=True)


def set_slots(model: nn.Module, slots: Slots | None) -> None:
    """From now on this chunk's forwards work on these slots; None: on whole texts again."""
    for module in model.modules():
        if hasattr(module, SLOTS):
            setattr(module, SLOTS, slots)


def _angles(rotary: Any, honest: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
    """Rotary angles `[tokens, 1, 1, head_dim]`; in a sampler of each token's position in its text, not in the row."""
    slots: Slots | None = rotary.slots
    if slots is None:
        return honest(*arguments, **keywords)
    assert slots.step is not None
    if slots.angles is None or slots.angles.shape[0] < slots.columns:
        # As if packed: context parallelism would cut the table.
        slots.angles = honest(slots.columns, packed_seq=True)
    return slots.angles[slots.step.positions]


def _last_tokens(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Hidden states `[tokens, 1, hidden]` -> those whose logits are needed."""
    slots: Slots | None = module.slots
    if slots is None or slots.step is None or slots.step.outputs is None:
        return None
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    hidden = inputs[0]
    if module.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        module.sequence_parallel, module.was_sequence_parallel = False, True
    return (hidden[slots.step.outputs], *inputs[1:]), keywords


def _restore_sequence_parallel(module: Any, inputs: Any, output: Any) -> None:
    if getattr(module, "was_sequence_parallel", False):
        module.sequence_parallel, module.was_sequence_parallel = True, False
