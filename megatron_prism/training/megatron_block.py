"""The `megatron` block: fields of Megatron-Core's configs that no other key sets, by their upstream names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

from megatron_prism.errors import ConfigError, PrismError, suggest
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.megatron_owned import CONSTANT, OWNED, REFUSED
from megatron_prism.training.megatron_table import CLASSES, fields_of, fits, in_words


@dataclass
class MegatronBlock:
    """Fields that reach Megatron-Core unchanged. They may change the numbers, so they are part of a run's identity.

    Attributes:
        transformer: of TransformerConfig.
        ddp: of DistributedDataParallelConfig.
        optimizer: of OptimizerConfig.
    """

    transformer: dict[str, Any] = field(default_factory=dict)
    ddp: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in CLASSES:
            values: dict[str, Any] = getattr(self, group)
            for name, value in values.items():
                self._check(group, name, value)
                if type(value) is int and "int" not in fields_of(group)[name]:
                    # 1 and 1.0 are the same run.
                    values[name] = float(value)
        scope = self.transformer.get("cuda_graph_scope") or []
        if "full_iteration" in (scope.split(",") if isinstance(scope, str) else scope):
            raise ConfigError(
                f"megatron.transformer.cuda_graph_scope={scope}: whole steps are not captured here; "
                "choose parts of a layer, such as attn, mlp and mamba"
            )
        if self.transformer.get("cuda_graph_impl") == "transformer_engine":
            raise ConfigError(
                "megatron.transformer.cuda_graph_impl=transformer_engine: only graphs of Megatron itself are captured "
                "here; use local"
            )

    def __bool__(self) -> bool:
        return bool(self.transformer or self.ddp or self.optimizer)

    @property
    def cuda_graphs(self) -> bool:
        """Whether layers are captured as CUDA graphs."""
        return (
            self.transformer.get("cuda_graph_impl", "none") != "none"
            or self.transformer.get("enable_cuda_graph") is True
        )

    def identity(self) -> dict[str, Any] | None:
        """All fields that are set; None for an empty block, so that runs from before it keep their folders."""
        return {group: dict(getattr(self, group)) for group in CLASSES} if self else None

    def check(self, kernels: KernelSettings, recompute: str, *, fixed_shapes: bool) -> None:
        """Refuse CUDA graphs together with what cannot be captured.

        Args:
            fixed_shapes: whether all micro-batches of the run have the same shapes.

        Raises:
            ConfigError: naming the key and the remedy.
        """
        if not self.cuda_graphs:
            return
        if kernels.overlap_param_gather:
            raise ConfigError(
                "kernels.overlap_param_gather=true: layers that wait for their weights cannot be captured as "
                "CUDA graphs; set it to null"
            )
        if recompute == "full":
            raise ConfigError(
                "recompute=full: Megatron does not capture recomputed layers as CUDA graphs; use none or selective"
            )
        if not fixed_shapes:
            raise ConfigError(
                "megatron.transformer.cuda_graph_impl: a CUDA graph needs micro-batches of one shape, which packed "
                "answers and separate documents are not; remove it"
            )

    def check_here(self, gpu: bool) -> None:
        """Refuse what this machine cannot do, before a model is built.

        Raises:
            ConfigError: if CUDA graphs are asked for without a GPU, or a library's random states without the library.
        """
        if self.cuda_graphs and not gpu:
            raise ConfigError("megatron.transformer.cuda_graph_impl: CUDA graphs need a GPU; remove it")
        if self.transformer.get("use_te_rng_tracker") and find_spec("transformer_engine") is None:
            raise ConfigError(
                "megatron.transformer.use_te_rng_tracker=True: Transformer Engine is not installed; remove it"
            )

    def random_states(self) -> dict[str, bool]:
        """The kind of random states that a session needs, for `platform.process_groups.session`."""
        return {
            "te_rng_tracker": bool(self.transformer.get("use_te_rng_tracker")),
            "graphable_rng": self.cuda_graphs,
        }

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """An error of Megatron-Core while it builds a model with these fields names them."""
        try:
            yield
        except (AssertionError, ValueError, KeyError) as problem:
            if not self or isinstance(problem, PrismError):
                raise
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            settings = ", ".join(self.settings())
            raise ConfigError(f"Megatron-Core refuses this run with {settings}: {reason}") from problem

    def settings(self) -> list[str]:
        """Each field that is set, as one would write it on the command line."""
        return [
            f"megatron.{group}.{name}={value}"
            for group in CLASSES
            for name, value in sorted(getattr(self, group).items())
        ]

    @staticmethod
    def _check(group: str, name: str, value: Any) -> None:
        key, table = f"megatron.{group}.{name}", fields_of(group)
        if name in OWNED[group]:
            raise ConfigError(
                f"{key}={value}: set {OWNED[group][name]} instead, from which this field follows"
            )
        reason = CONSTANT[group].get(name) or next(
            (why for pattern, why in REFUSED[group].items() if fnmatchcase(name, pattern)), ""
        )
        if name in table and reason:
            raise ConfigError(f"{key}={value}: not possible: {reason}")
        if name not in table:
            raise ConfigError(f"unknown key '{key}'{_nearest(group, name)}")
        if not table[name]:
            raise ConfigError(f"{key}={value}: a config file cannot hold such a value")
        if not any(fits(value, form) for form in table[name]):
            raise ConfigError(f"{key}={value!r}: must be {in_words(table[name])}")


def _nearest(group: str, name: str) -> str:
    elsewhere = [other for other in CLASSES if name in fields_of(other)]
    if elsewhere:
        return f"; megatron.{elsewhere[0]} has a field of that name"
    near = suggest(name, fields_of(group))
    return near if near.startswith("; did") else f": {CLASSES[group]} has no such field"
