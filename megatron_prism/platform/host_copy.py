"""Copies of tensors in the memory of the host, in buffers that are used again: new memory costs more than the copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_prism.platform.hardware import has_gpu


class HostBuffers:
    """Host memory for the copies of one state; page-locked where there is a GPU, so that the copy is fast."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def copy(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compact copies, valid until the next call.

        The n-th tensor of each call gets the same buffer, if its shape and type are the same.
        """
        copies = []
        for index, tensor in enumerate(tensors):
            buffer = self._buffers[index] if index < len(self._buffers) else None
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=has_gpu())
            buffer.copy_(tensor, non_blocking=True)
            copies.append(buffer)
        if has_gpu():
            torch.cuda.synchronize()
        self._buffers = copies
        return copies
