"""FP8 recipes, the precision of optimizer state, and optimizer state outside the GPU; the format is the key `fp8`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.config import not_negative, one_of
from megatron_prism.platform.hardware import compute_capability, cuda_version
from megatron_prism.platform.process_groups import ParallelConfig

FP8_RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
# The first version of Transformer Engine with the recipe (fp8_utils.py:554-571).
RECIPE_VERSIONS = {"delayed": "1.0", "tensorwise": "2.2.0", "blockwise": "2.3.0", "mxfp8": "2.1.0"}
# The least compute capability of a GPU, and the first one that Transformer Engine refuses again; others need 8.9.
CAPABILITIES: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "blockwise": ((9, 0), None),
    "mxfp8": ((10, 0), (12, 0)),
}
BLOCKWISE_CUDA = (12, 9)
MOMENT_DTYPES = ("fp32", "bf16", "fp16")


@dataclass
class PrecisionSettings:
    """What is stored and computed in less than fp32. The defaults keep fp32 main weights, moments and gradient sums.

    Attributes:
        fp8_recipe: how FP8 scales are found: 'delayed' (from earlier steps), 'tensorwise' (from the tensor itself),
            'blockwise' (one for every 128 x 128 block; Hopper), 'mxfp8' (one for every 32 numbers; Blackwell).
        fp8_param_gather: keep weights in FP8 and gather them so; the main weights stay in the optimizer. Not with
            'mxfp8', whose weights share the gradients' buffer upstream, so that a step which is left out loses them.
        first_last_layers_bf16: compute the first and last layers in bf16; not with the delayed recipe.
        layers_at_start_in_bf16, layers_at_end_in_bf16: how many layers that is.
        grad_reduce_in_fp32: sum gradients over micro-batches and ranks in fp32; false halves the buffer and traffic.
        precision_aware_optimizer: Transformer Engine's Adam holds the main weights and may keep state in less than
            fp32; needs bf16 and the distributed optimizer.
        main_params_dtype, main_grads_dtype, exp_avg_dtype, exp_avg_sq_dtype: of that optimizer's state, 'fp32', 'bf16'
            or 'fp16'; main weights are never 'bf16'.
        optimizer_offload: share of the optimizer's state, and of its work, that moves to the CPU, from 0 to 1; needs
            `precision_aware_optimizer`.
    """

    fp8_recipe: str = "delayed"
    fp8_param_gather: bool = False
    first_last_layers_bf16: bool = False
    layers_at_start_in_bf16: int = 1
    layers_at_end_in_bf16: int = 1
    grad_reduce_in_fp32: bool = True
    precision_aware_optimizer: bool = False
    main_params_dtype: str = "fp32"
    main_grads_dtype: str = "fp32"
    exp_avg_dtype: str = "fp32"
    exp_avg_sq_dtype: str = "fp32"
    optimizer_offload: float = 0.0

    def __post_init__(self) -> None:
        one_of(self.fp8_recipe, FP8_RECIPES, "precision.fp8_recipe")
        one_of(self.main_params_dtype, ("fp32", "fp16"), "precision.main_params_dtype")
        one_of(self.main_grads_dtype, ("fp32", "bf16"), "precision.main_grads_dtype")
        for name in ("exp_avg_dtype", "exp_avg_sq_dtype"):
            one_of(getattr(self, name), MOMENT_DTYPES, f"precision.{name}")
        not_negative(self, "layers_at_start_in_bf16", "layers_at_end_in_bf16", group="precision")
        if not 0 <= self.optimizer_offload <= 1:
            raise ConfigError(
                f"precision.optimizer_offload={self.optimizer_offload}: must be a share from 0 to 1"
            )
        if not self.precision_aware_optimizer:
            for name in ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
                if getattr(self, name) != "fp32":
                    raise ConfigError(
                        f"precision.{name}={getattr(self, name)} needs precision.precision_aware_optimizer=true"
                    )
            if self.optimizer_offload:
                raise ConfigError(
                    f"precision.optimizer_offload={self.optimizer_offload} needs "
                    "precision.precision_aware_optimizer=true, without which its state cannot be resumed"
                )
        if self.optimizer_offload and self.main_params_dtype != "fp32":
            raise ConfigError(
                f"precision.main_params_dtype={self.main_params_dtype}: an optimizer on the CPU keeps fp32 weights"
            )
        if self.main_grads_dtype != "fp32" and self.grad_reduce_in_fp32:
            raise ConfigError(
                f"precision.main_grads_dtype={self.main_grads_dtype} needs precision.grad_reduce_in_fp32=false"
            )

    def check(
        self, architecture: Architecture, parallel: ParallelConfig, dtype: str, fp8: str | None
    ) -> None:
        """Refuse settings that would have no effect or that upstream does not support.

        Raises:
            ConfigError, ParallelError: naming the key and the remedy.
        """
        default = PrecisionSettings()
        if fp8 is None:
            for name in ("fp8_recipe", "fp8_param_gather", "first_last_layers_bf16"):
                if getattr(self, name) != getattr(default, name):
                    raise ConfigError(
                        f"precision.{name}={getattr(self, name)} has no effect without fp8; set fp8=hybrid or fp8=e4m3"
                    )
        if self.fp8_param_gather and self.fp8_recipe == "mxfp8":
            raise ConfigError(
                "precision.fp8_param_gather=true does not work with precision.fp8_recipe=mxfp8; use tensorwise or "
                "blockwise, or gather in bf16"
            )
        if self.first_last_layers_bf16:
            self._check_first_last(architecture, parallel)
        distributed = parallel.use_distributed_optimizer
        for name in ("fp8_param_gather", "precision_aware_optimizer"):
            if getattr(self, name) and not distributed:
                raise ParallelError(f"precision.{name}=true needs parallel.use_distributed_optimizer=true")
        if self.precision_aware_optimizer and dtype != "bf16":
            raise ConfigError(
                f"precision.precision_aware_optimizer=true needs dtype=bf16, not {dtype}: fp32 weights have no copies"
            )
        if not self.grad_reduce_in_fp32 and dtype == "fp32":
            raise ConfigError(
                "precision.grad_reduce_in_fp32=false: gradients of dtype=fp32 are fp32; use dtype=bf16"
            )

    def _check_first_last(self, architecture: Architecture, parallel: ParallelConfig) -> None:
        if self.fp8_recipe == "delayed":
            raise ConfigError(
                "precision.first_last_layers_bf16=true does not work with precision.fp8_recipe=delayed; use tensorwise"
            )
        most = architecture.num_layers // parallel.pipeline_model_parallel_size
        for name in ("layers_at_start_in_bf16", "layers_at_end_in_bf16"):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(
                    f"precision.{name}={getattr(self, name)}: must be between 0 and the {most} layers of a stage"
                )

    def transformer_fields(self, fp8: str | None) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig."""
        if fp8 is None:
            return {}
        fields: dict[str, Any] = {
            "fp8": fp8,
            "fp8_recipe": self.fp8_recipe,
            "fp8_param": self.fp8_param_gather,
            "first_last_layers_bf16": self.first_last_layers_bf16,
            "num_layers_at_start_in_bf16": self.layers_at_start_in_bf16,
            "num_layers_at_end_in_bf16": self.layers_at_end_in_bf16,
        }
        if self.fp8_param_gather:
            # Weights are made in FP8, which only the GPU can do.
            fields["use_cpu_initialization"] = False
        return fields

    def ddp_fields(self) -> dict[str, Any]:
        """Fields of Megatron's DistributedDataParallelConfig."""
        return {
            "grad_reduce_in_fp32": self.grad_reduce_in_fp32,
            "fp8_param_gather": self.fp8_param_gather,
        }

    def optimizer_fields(self, fp8: str | None) -> dict[str, Any]:
        """Fields of Megatron's OptimizerConfig."""
        return {
            "fp8_recipe": self.fp8_recipe if fp8 else None,
            "use_precision_aware_optimizer": self.precision_aware_optimizer,
            # Remainders instead of main weights save 2 bytes per parameter, but a checkpoint would hold remainders,
            # which only the layout that wrote it can read.
            "store_param_remainders": False,
            "optimizer_cpu_offload": self.optimizer_offload > 0,
            "optimizer_offload_fraction": self.optimizer_offload,
            **{
                name: _torch_dtype(getattr(self, name))
                for name in ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
            },
        }


def check_recipe_here(recipe: str) -> None:
    """Refuse a recipe that the installed Transformer Engine or this GPU does not have, before a model is built.

    Raises:
        ConfigError: naming what is missing.
    """
    from megatron.core.utils import is_te_min_version

    if not is_te_min_version(RECIPE_VERSIONS[recipe]):
        raise ConfigError(
            f"precision.fp8_recipe={recipe} needs Transformer Engine {RECIPE_VERSIONS[recipe]} or newer; use delayed"
        )
    least, below = CAPABILITIES.get(recipe, ((8, 9), None))
    found = compute_capability()
    if found < least or (below is not None and found >= below):
        wanted = f"{least[0]}.{least[1]}" + (
            f" or more, below {below[0]}.{below[1]}" if below else " or more"
        )
        raise ConfigError(
            f"precision.fp8_recipe={recipe} needs a GPU of compute capability {wanted}; this one has "
            f"{found[0]}.{found[1]}"
        )
    if recipe == "blockwise" and (cuda := cuda_version()) < BLOCKWISE_CUDA:
        raise ConfigError(
            f"precision.fp8_recipe={recipe} needs CUDA {BLOCKWISE_CUDA[0]}.{BLOCKWISE_CUDA[1]} or newer; torch was "
            f"built with {cuda[0]}.{cuda[1]}"
        )


def _torch_dtype(name: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
