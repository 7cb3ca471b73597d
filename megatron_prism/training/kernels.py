"""How a training step communicates and which fused kernels it uses, which changes its speed, not what it computes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.config import one_of, positive
from megatron_prism.platform.process_groups import ParallelConfig

CP_COMMUNICATION = ("auto", "p2p", "a2a", "all_gather")
ATTENTION_BACKENDS = ("auto", "flash", "fused", "unfused")
# Apex's kernel, which Megatron's own linear layers call, the output layer of both backends included
# (tensor_parallel/layers.py:69).
FUSED_WEIGHT_GRADIENT = "fused_weight_gradient_mlp_cuda"
FUSED_ROPE = "transformer_engine"


@dataclass
class KernelSettings:
    """Communication and kernels. `null` means: on where a GPU computes and the layout and the libraries allow it.

    Attributes:
        overlap_grad_reduce: reduce the gradients of finished layers while the backward pass goes on, in buckets.
        overlap_param_gather: gather updated weights while the next forward pass runs; needs `overlap_grad_reduce` and
            the distributed optimizer. Reinforcement learning does not use it, because it samples between its steps.
        bucket_size: parameters per bucket; null: 40 million, or 1 million per data-parallel rank if that is more.
        gradient_accumulation_fusion: add weight gradients to the fp32 buffer inside the matrix product; needs Apex.
        fused_swiglu: Megatron's fused SwiGLU in the `te` backend; the `torch` backend always uses its own, which keeps
            only its input for the backward pass.
        fused_rope: Transformer Engine's kernel for rotary embeddings, in the `te` backend.
        cp_comm_type: how context-parallel ranks of the `te` backend exchange keys and values: 'p2p', 'a2a',
            'all_gather', or 'auto': 'p2p', and for sliding windows, which it cannot do, 'a2a' if the ranks divide the
            heads, else 'all_gather'. The `torch` backend always gathers.
        attention_backend: 'flash', 'fused' (cuDNN), 'unfused', or 'auto', which leaves the choice to Transformer
            Engine.
        collective_timeout: minutes after which a collective that not all ranks have joined ends the run.
    """

    overlap_grad_reduce: bool | None = None
    overlap_param_gather: bool | None = None
    bucket_size: int | None = None
    gradient_accumulation_fusion: bool | None = None
    fused_swiglu: bool | None = None
    fused_rope: bool | None = None
    cp_comm_type: str = "auto"
    attention_backend: str = "auto"
    collective_timeout: float = 10.0

    def __post_init__(self) -> None:
        one_of(self.cp_comm_type, CP_COMMUNICATION, "kernels.cp_comm_type")
        one_of(self.attention_backend, ATTENTION_BACKENDS, "kernels.attention_backend")
        positive(
            self,
            "collective_timeout",
            *(["bucket_size"] if self.bucket_size is not None else []),
            group="kernels",
        )
        if self.overlap_param_gather and self.overlap_grad_reduce is False:
            raise ConfigError(
                "kernels.overlap_param_gather=true needs kernels.overlap_grad_reduce=true, whose buckets it gathers"
            )
        if self.bucket_size is not None and self.overlap_grad_reduce is False:
            raise ConfigError(
                f"kernels.bucket_size={self.bucket_size}: without kernels.overlap_grad_reduce there are no buckets"
            )

    def check(self, architecture: Architecture, parallel: ParallelConfig, backend: str) -> None:
        """Refuse what the model, the layout or the backend ('auto', 'te', 'torch') cannot do.

        Raises:
            ConfigError, ParallelError: naming the key and the remedy.
        """
        if self.overlap_param_gather and not parallel.use_distributed_optimizer:
            raise ParallelError(
                "kernels.overlap_param_gather=true needs parallel.use_distributed_optimizer=true: without it every "
                "rank updates all weights, and nothing is gathered"
            )
        if self.fused_swiglu and architecture.activation != "swiglu":
            raise ConfigError(
                f"kernels.fused_swiglu=true: the model's activation is {architecture.activation}; set it to null"
            )
        if self.fused_rope and architecture.position_embedding != "rope":
            raise ConfigError("kernels.fused_rope=true: the model has no rotary embedding; set it to null")
        for name in ("cp_comm_type", "attention_backend", "fused_swiglu", "fused_rope"):
            value, unset = getattr(self, name), getattr(KernelSettings, name)
            if value not in (unset, False) and backend == "torch":
                raise ConfigError(
                    f"kernels.{name}={value}: only backend=te has a choice, not backend=torch; remove it"
                )
        size = parallel.context_parallel_size
        if size == 1 or self.cp_comm_type == "auto":
            return
        if self.cp_comm_type == "p2p" and architecture.sliding_window is not None:
            raise ParallelError(
                f"kernels.cp_comm_type=p2p cannot do sliding windows, and the model has sliding_window="
                f"{architecture.sliding_window}; use auto, a2a or all_gather"
            )
        if self.cp_comm_type == "a2a" and not _divides_heads(architecture, parallel):
            raise ParallelError(
                f"kernels.cp_comm_type=a2a: context_parallel_size={size} does not divide the "
                f"{architecture.num_query_groups} key and value heads of {parallel.tensor_model_parallel_size} "
                "tensor-parallel ranks; use all_gather"
            )

    def overlaps(self, parallel: ParallelConfig, gpu: bool) -> tuple[bool, bool]:
        """Whether gradients and weights are communicated during the passes."""
        replicas = parallel.data_parallel_size * parallel.context_parallel_size > 1
        wanted = self.overlap_param_gather or (gpu and replicas)
        grads = wanted if self.overlap_grad_reduce is None else self.overlap_grad_reduce
        params = self.overlap_param_gather
        if params is None:
            params = gpu and replicas and grads and parallel.use_distributed_optimizer
        return bool(grads), bool(params)

    def ddp_fields(self, parallel: ParallelConfig, gpu: bool) -> dict[str, Any]:
        """Fields of Megatron's DistributedDataParallelConfig."""
        grads, params = self.overlaps(parallel, gpu)
        return {
            "overlap_grad_reduce": grads,
            "overlap_param_gather": params,
            "bucket_size": self.bucket_size,
        }

    def transformer_fields(
        self, architecture: Architecture, parallel: ParallelConfig, backend: str, gpu: bool
    ) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig.

        Args:
            backend: 'te' or 'torch'.

        Raises:
            ConfigError: if a kernel is asked for by name and its library is not installed.
        """
        fields: dict[str, Any] = {
            "gradient_accumulation_fusion": _use(
                self.gradient_accumulation_fusion,
                "gradient_accumulation_fusion",
                gpu,
                FUSED_WEIGHT_GRADIENT,
            ),
            "bias_activation_fusion": architecture.activation == "swiglu"
            and (gpu and backend == "te" if self.fused_swiglu is None else self.fused_swiglu),
            "apply_rope_fusion": architecture.position_embedding == "rope"
            and _use(self.fused_rope, "fused_rope", gpu and backend == "te", FUSED_ROPE),
        }
        if backend == "te":
            from megatron.core.transformer.enums import AttnBackend

            fields["attention_backend"] = AttnBackend[self.attention_backend]
            if parallel.context_parallel_size > 1:
                fields["cp_comm_type"] = self._communication(architecture, parallel)
        return fields

    def _communication(self, architecture: Architecture, parallel: ParallelConfig) -> str:
        if self.cp_comm_type != "auto":
            return self.cp_comm_type
        if architecture.sliding_window is None:
            return "p2p"
        return "a2a" if _divides_heads(architecture, parallel) else "all_gather"


def _divides_heads(architecture: Architecture, parallel: ParallelConfig) -> bool:
    """Whether 'a2a' can give every context-parallel rank whole key and value heads."""
    groups = architecture.num_query_groups // parallel.tensor_model_parallel_size
    return groups % parallel.context_parallel_size == 0


def _use(wanted: bool | None, key: str, suitable: bool, library: str) -> bool:
    installed = importlib.util.find_spec(library) is not None
    if wanted and not installed:
        raise ConfigError(
            f"kernels.{key}=true: {library} is not installed; install it, or set the key to null"
        )
    return suitable and installed if wanted is None else wanted
