"""Seeds and the complete random state of a rank, so that a resumed run draws the same numbers as an unbroken one."""

from __future__ import annotations

import random
from typing import Any


def seed_everything(seed: int, *, te_rng_tracker: bool = False, graphable_rng: bool = False) -> None:
    """Seed Python, numpy, torch and Megatron's model-parallel states (which differ per TP and PP rank).

    Args:
        te_rng_tracker: Transformer Engine keeps the model-parallel states.
        graphable_rng: they can be used in CUDA graphs.
    """
    import numpy
    import torch
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import random as upstream

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    upstream._CUDA_RNG_STATE_TRACKER = None
    upstream._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    tensor_parallel.model_parallel_cuda_manual_seed(
        seed, te_rng_tracker=te_rng_tracker, use_cudagraphable_rng=graphable_rng
    )


def random_state() -> dict[str, Any]:
    """This rank's random state, for a checkpoint."""
    import numpy
    import torch
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import random as upstream

    generator: Any = numpy.random.get_state(legacy=False)
    generator["state"]["key"] = generator["state"]["key"].tolist()
    # Only plain types and tensors, so that it can be loaded from a checkpoint without unpickling code.
    return {
        "python": random.getstate(),
        "numpy": generator,
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "tracker": {
            # States of CUDA graphs are generators, which a checkpoint cannot hold.
            name: upstream.convert_cuda_rng_state(state)
            for name, state in tensor_parallel.get_cuda_rng_tracker().get_states().items()
        },
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    import numpy
    import torch
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import random as upstream

    random.setstate(state["python"])
    generator = state["numpy"]
    key = numpy.asarray(generator["state"]["key"], dtype=numpy.uint32)
    numpy.random.set_state({**generator, "state": {**generator["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["device"])
    tracker = tensor_parallel.get_cuda_rng_tracker()
    graphable = upstream.is_graph_safe_cuda_rng_tracker(tracker)
    tracker.set_states(
        {name: upstream.convert_cuda_rng_state(each, graphable) for name, each in state["tracker"].items()}
    )
