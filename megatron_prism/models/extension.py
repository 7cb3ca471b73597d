"""Extends a model's context: more positions and, for rotary models, a new base or scaling, checked in advance.

A rotary model cannot use positions that it has not seen in training, unless its frequencies change with the length (a
larger base, llama3, YaRN, linear interpolation) or already reach the new length. So more positions need one of these,
or `keep_rope`, which states that the frequencies stay on purpose. Hybrids without positions need neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import LARGEST_ROPE_THETA, Architecture
from megatron_prism.models.families import architecture_from_config, hf_config
from megatron_prism.models.rope import RopeScaling
from megatron_prism.pipeline.config import positive

# The fields of the architecture that an extension may change.
CHANGED = ("max_position_embeddings", "rope_theta", "rope_scaling")


@dataclass
class ContextExtension:
    """The changes to a model whose context is extended.

    Attributes:
        max_position_embeddings: positions of the extended model; not fewer than before.
        rope_theta: the new base of the rotary frequencies; None keeps it.
        rope_scaling: the new scaling, which replaces the model's; None keeps it.
        keep_rope: extend the positions without changing the frequencies.
    """

    max_position_embeddings: int
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    keep_rope: bool = False

    def __post_init__(self) -> None:
        positive(self, "max_position_embeddings")
        # This form of the comparison also refuses NaN.
        if self.rope_theta is not None and not 1 < self.rope_theta <= LARGEST_ROPE_THETA:
            raise ConfigError(
                f"extension.rope_theta={self.rope_theta}: must be greater than 1 and at most {LARGEST_ROPE_THETA:g}"
            )


def extended(architecture: Architecture, extension: ContextExtension) -> Architecture:
    """The architecture of the extended model: other positions and rotary frequencies, the same weights.

    A sliding window stays, so a layer still sees no more tokens than before.

    Raises:
        ConfigError: naming the key, if the length is below the model's, the frequencies do not reach it, the model
            has no rotary positions, or its family's config cannot express the change.
    """
    length, before = extension.max_position_embeddings, architecture.max_position_embeddings
    if length < before:
        raise ConfigError(
            f"extension.max_position_embeddings={length}: the model already has {before}; use {before} or more"
        )
    if architecture.position_embedding == "none":
        _refuse_rope(architecture, extension)
    else:
        _check_rope(architecture, extension)
    longer = replace(
        architecture,
        max_position_embeddings=length,
        rope_theta=extension.rope_theta or architecture.rope_theta,
        rope_scaling=extension.rope_scaling or architecture.rope_scaling,
    )
    read_back = architecture_from_config(hf_config(longer))
    for name in CHANGED:
        if getattr(read_back, name) != getattr(longer, name):
            value = _shown(getattr(longer, name))
            raise ConfigError(
                f"extension.{name}: the config.json of family={longer.family} cannot express {value}; use another value"
            )
    return longer


def describe(before: Architecture, after: Architecture) -> str:
    """One line that names every changed setting, and the sliding window if there is one."""
    parts = []
    for name in CHANGED:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            parts.append(f"{name} {_shown(old)} -> {_shown(new)}")
    if before.position_embedding == "none":
        parts.append("no rotary positions")
    if after.sliding_window is not None:
        parts.append(f"sliding_window={after.sliding_window} stays: it still limits every layer")
    return ", ".join(parts) or "nothing changes"


def _shown(value: object) -> str:
    if isinstance(value, RopeScaling):
        numbers = ", ".join(f"{name}={number:g}" for name, number in value.numbers().items())
        return f"{value.rope_type}({numbers})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _refuse_rope(architecture: Architecture, extension: ContextExtension) -> None:
    for name in ("rope_theta", "rope_scaling", "keep_rope"):
        if getattr(extension, name):
            raise ConfigError(
                f"extension.{name}: this {architecture.family} model has no rotary positions; set only "
                "extension.max_position_embeddings"
            )


def _check_rope(architecture: Architecture, extension: ContextExtension) -> None:
    length, theta = extension.max_position_embeddings, extension.rope_theta
    if theta is not None and theta < architecture.rope_theta:
        raise ConfigError(
            f"extension.rope_theta={theta:g}: the model has {architecture.rope_theta:g}, and a smaller base covers "
            "fewer positions; use a larger one"
        )
    new_theta = theta is not None and theta != architecture.rope_theta
    new_scaling = extension.rope_scaling is not None and extension.rope_scaling != architecture.rope_scaling
    if extension.keep_rope and (new_theta or new_scaling):
        raise ConfigError(
            "extension.keep_rope=true contradicts extension.rope_theta or extension.rope_scaling, which change the "
            "frequencies; remove one of them"
        )
    longer = length > architecture.max_position_embeddings
    if longer and not (new_theta or new_scaling or extension.keep_rope):
        raise ConfigError(
            f"extension.max_position_embeddings={length}: the model's rotary frequencies cover "
            f"{architecture.max_position_embeddings} positions; set a rope_theta larger than "
            f"{architecture.rope_theta:g}, a rope_scaling, or keep_rope=true to leave the frequencies unchanged"
        )
    if new_scaling and extension.rope_scaling is not None:
        _check_scaling(architecture, extension.rope_scaling, length)


def _check_scaling(architecture: Architecture, scaling: RopeScaling, length: int) -> None:
    """Check that the original length is not above the model's, and that the factor stretches it to the new length.

    The factor of llama3 stretches only the longest wavelengths and does not determine the length: LLaMA 3.1 has a
    factor of 8, with 8,192 original and 131,072 positions.
    """
    if scaling.rope_type == "dynamic":
        raise ConfigError(
            "extension.rope_scaling.rope_type=dynamic: it changes no frequency up to max_position_embeddings; use "
            "linear, yarn or llama3"
        )
    # An imported config may have such a factor or such betas, as in transformers, but they extend nothing.
    if scaling.factor < 1:
        raise ConfigError(f"extension.rope_scaling.factor={scaling.factor:g}: must be 1 or more")
    slow, fast = scaling.beta_slow, scaling.beta_fast
    if slow is not None and fast is not None and slow >= fast:
        raise ConfigError(f"extension.rope_scaling.beta_slow={slow:g}: must be below beta_fast={fast:g}")
    original = scaling.original_max_position_embeddings
    if original is None:
        original = _unscaled_length(architecture)
    if original > architecture.max_position_embeddings:
        raise ConfigError(
            f"extension.rope_scaling.original_max_position_embeddings={original}: must be at most the model's "
            f"max_position_embeddings={architecture.max_position_embeddings}"
        )
    if scaling.rope_type != "llama3" and scaling.factor * original < length:
        raise ConfigError(
            f"extension.rope_scaling.factor={scaling.factor:g}: it stretches the original {original} positions to "
            f"{scaling.factor * original:g}, but max_position_embeddings={length} needs a factor of "
            f"{length / original:g} or more"
        )


def _unscaled_length(architecture: Architecture) -> int:
    """The number of positions the model had before its scaling."""
    scaling = architecture.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return architecture.max_position_embeddings
    return scaling.original_max_position_embeddings or int(
        architecture.max_position_embeddings / scaling.factor
    )
