"""What a rank of a pipeline sends to its neighbours, and what it expects of them: shapes and dtypes.

A process group that does nothing gives the receiver a tensor of the size that it expects, whatever the sender sends. So
both are written down here, for `training.dry_exchanges` to compare. Megatron's schedules send through one function
(p2p_communication.py:254), and sampling through `send` and `recv`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

# Which neighbour, in the order of Megatron's arguments and results.
TO_NEXT, TO_PREVIOUS, FROM_PREVIOUS, FROM_NEXT = "to_next", "to_previous", "from_previous", "from_next"


@dataclass
class Exchanges:
    """A rank's tensors to and from each neighbour, in order: '4096x1x4096 bfloat16', and how many of these in a row."""

    to_next: list[tuple[str, int]] = field(default_factory=list)
    to_previous: list[tuple[str, int]] = field(default_factory=list)
    from_previous: list[tuple[str, int]] = field(default_factory=list)
    from_next: list[tuple[str, int]] = field(default_factory=list)

    def add(self, neighbour: str, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        text = f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
        found: list[tuple[str, int]] = getattr(self, neighbour)
        if found and found[-1][0] == text:
            found[-1] = (text, found[-1][1] + 1)
        else:
            found.append((text, 1))


@contextlib.contextmanager
def recorded_exchanges() -> Iterator[Exchanges]:
    """Record what this rank exchanges along its pipeline inside the block."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    found = Exchanges()
    communicate, send, receive = P2PCommunicator._communicate, dist.send, dist.recv

    def communicated(self: Any, **keywords: Any) -> Any:
        found.add(TO_NEXT, keywords["tensor_send_next"])
        found.add(TO_PREVIOUS, keywords["tensor_send_prev"])
        result = communicate(self, **keywords)
        found.add(FROM_PREVIOUS, result[0])
        found.add(FROM_NEXT, result[1])
        return result

    def sent(tensor: Tensor, *inputs: Any, **keywords: Any) -> None:
        found.add(TO_NEXT, tensor)
        send(tensor, *inputs, **keywords)

    def received(tensor: Tensor, *inputs: Any, **keywords: Any) -> int | None:
        found.add(FROM_PREVIOUS, tensor)
        return receive(tensor, *inputs, **keywords)

    P2PCommunicator._communicate = communicated
    dist.send, dist.recv = sent, received  # type: ignore[assignment]
    try:
        yield found
    finally:
        P2PCommunicator._communicate = communicate
        dist.send, dist.recv = send, receive
