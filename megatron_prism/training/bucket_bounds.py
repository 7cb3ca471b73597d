"""Repairs upstream's count of the numbers in a gradient bucket, on which its reshardable checkpoints depend.

Megatron-Core 0.16.1 gathers the optimizer's state without the padding at the end of each bucket
(distrib_optimizer.py:1113-1118), but cuts it into parameters at their positions in the buffer, where that padding
counts (:1500). With one bucket both are the same. With several, every parameter after a padded bucket gets the numbers
of its neighbour, and the last one zeros ("param range exceeds unpadded buffer", :1512). A tied embedding under
pipeline parallelism has a bucket of its own (param_and_grad_buffer.py:718), so the second bucket is the rule there.
"""

from __future__ import annotations

from typing import Any


def count_inner_padding(optimizer: Any) -> None:
    """Count the padding of every bucket but a buffer's last one, so that the gathered state keeps its positions."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not isinstance(part, DistributedOptimizer) or part.is_stub_optimizer:
            continue
        for index, buffer in enumerate(part.buffers):
            for bucket in buffer.buckets[:-1]:
                bucket.numel_unpadded = bucket.grad_data.numel()
            sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
            buffer.numel_unpadded = sum(sizes)
            (kind,) = part.per_bucket_numel_unpadded[index]
            part.per_bucket_numel_unpadded[index][kind] = sizes
