"""Weights that are gathered during the forward pass: who has to wait for them.

With `overlap_param_gather`, an optimizer step leaves every rank with new values of its own shard only. When a module is
called, upstream's hook waits for the parameters that the module owns itself (distributed_data_parallel.py:384). Layers
that read the weights of a submodule without calling it, as Mamba mixers do with their convolution and norm, could
compute with stale weights where a bucket ends between the two. Here, a layer waits for all of its parameters.
"""

from __future__ import annotations

from typing import Any


def wait_for_whole_layers(ddp: Any) -> None:
    """Make each layer of a DDP-wrapped model wait for all its parameters before it computes."""
    for layer in ddp.module.decoder.layers:
        parameters = [each for each in layer.parameters() if each in ddp.param_to_bucket_group]

        def wait(module: Any, inputs: Any, parameters: list[Any] = parameters) -> None:
            for parameter in parameters:
                ddp.param_to_bucket_group[parameter].finish_param_sync()

        layer.register_forward_pre_hook(wait)


def finish(models: list[Any]) -> None:
    """Gather all weights now. Whoever reads them outside of a forward pass calls this first; all ranks must."""
    for model in models:
        if model.ddp_config.overlap_param_gather:
            # From the input to the output, because each bucket starts the next one. The forward pass after this
            # gathers nothing, and neither does a second call before the next step.
            for group in reversed(model.bucket_groups):
                group.finish_param_sync()
