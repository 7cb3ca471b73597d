"""The `te` backend: layer specs on Transformer Engine and mamba_ssm kernels, for CUDA.

The counterpart of `specs_torch.py`: a norm and the linear layer after it are one fused module, so there are no separate
norms inside a layer; the checkpoint keys are the same. The specs are upstream's (gpt_layer_specs.py:271,
mamba_layer_specs.py:36) without MoE and with Granite's residual multiplier.

Line numbers below are those of Megatron-Core 0.16.1's extensions/transformer_engine.py, if no other file is named.

- Softmax scale: attention passes `config.softmax_scale` to its core (attention.py:324), and TE uses it (:1279); None
  means 1/sqrt(head_dim).
- Sliding window: TE gets `config.window_size` (:1262-1270) where `window_attn_skip_freq` picks the layer
  (transformer/utils.py:451). The window is (tokens to the left, tokens to the right), so (w - 1, 0) for w tokens.
- Final norm: GPTModel's is set in this file; MambaStack always has a TENorm (ssm/mamba_block.py:166).

Megatron and TE are imported inside the functions: if only TE's empty meta package is installed, importing either
raises a RuntimeError, which `missing` must report.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ConfigError
from megatron_prism.platform.hardware import has_gpu

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

# The parameters of each Transformer Engine module without biases, as upstream reads them (:342, :365). Its
# `_extra_state` is FP8's scaling history, not a weight. tests/models/test_specs_te.py proves with this table that both
# backends write the same checkpoint keys.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "TELayerNormColumnParallelLinear": ("layer_norm_weight", "weight"),
    "TERowParallelLinear": ("weight",),
    "TEDotProductAttention": (),
    "TENorm": ("weight",),
}


@dataclass(frozen=True)
class Modules:
    """The modules of the specs: classes, or stand-ins and names in tests on a machine without Transformer Engine."""

    norm_and_column: Any
    row: Any
    attention: Any
    norm: Any
    mixer: Any
    stack: Any


def upstream_modules() -> Modules:
    """Upstream's classes. Without TE some of them are mocks, so the builders call `missing` first."""
    from megatron.core.extensions import transformer_engine as te
    from megatron.core.ssm.mamba_block import MambaStack
    from megatron.core.ssm.mamba_mixer import MambaMixer

    return Modules(
        norm_and_column=te.TELayerNormColumnParallelLinear,
        row=te.TERowParallelLinear,
        attention=te.TEDotProductAttention,
        norm=te.TENorm,
        mixer=MambaMixer,
        stack=MambaStack,
    )


def missing(hybrid: bool = False) -> str | None:
    """The requirements of this backend that this machine lacks, in one phrase; None if it lacks none.

    `backend=auto` uses it, too.
    """
    absent = [] if has_gpu() else ["no CUDA GPU"]
    if (problem := _transformer_engine_problem()) is not None:
        absent.append(f"no Transformer Engine ({problem})")
    if hybrid:
        # Upstream's training kernel is mamba_ssm's fused one, which needs causal_conv1d (ssm/mamba_mixer.py:659).
        for package in ("mamba_ssm", "causal_conv1d"):
            if (problem := _import_problem(package)) is not None:
                absent.append(f"no {package} ({problem})")
    return ", ".join(absent) or None


def _transformer_engine_problem() -> str | None:
    if (problem := _import_problem("transformer_engine.pytorch")) is not None:
        return problem
    upstream = importlib.import_module("megatron.core.extensions.transformer_engine")
    # Upstream ignores an ImportError and continues with mocks (:61-77), so a TE that it cannot use would be noticed
    # only when a layer fails.
    return None if upstream.HAVE_TE else "Megatron-Core cannot use the installed version"


def _import_problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    # Not only ImportError: TE's meta package raises RuntimeError, a CUDA extension OSError for a missing library.
    except Exception as problem:
        lines = str(problem).strip().splitlines()
        return lines[0][:200] if lines else type(problem).__name__
    return None


def require(hybrid: bool = False) -> None:
    """Raise a ConfigError of one line if this backend cannot be used."""
    if (reason := missing(hybrid)) is not None:
        raise ConfigError(
            f"backend=te: {reason}; pip install 'megatron-prism[gpu]' on a machine with CUDA, or use backend=torch"
        )


def require_fp8(fp8: str | None, backend: str) -> None:
    """Raise a ConfigError if FP8 is requested and would not be used.

    Megatron-Core does not check it: without TE its FP8 context is a nullcontext (fp8_utils.py:656-664), entered around
    building and running the layers (transformer_block.py:345, :717-721; mamba_block.py:122, :315-317); with TE the
    context reaches TE's layers only, not those of the torch backend. TransformerConfig checks FP8's other fields
    (transformer_config.py:988-1028), but not whether it can be computed.
    """
    if fp8 is None:
        return
    if backend != "te":
        raise ConfigError(
            f"fp8={fp8}: backend={backend} would silently compute without it; set backend=te or fp8=null"
        )
    if (reason := missing()) is not None:
        raise ConfigError(
            f"fp8={fp8}: {reason}; pip install 'megatron-prism[gpu]' on a machine with CUDA, or set fp8=null"
        )


def unfused_name(name: str) -> str:
    """The `torch` backend's name of a parameter of this backend's model: fused norms get their own module's name.

    The names in `state_dict()` are those of the module tree, which differ; the checkpoint keys are the same.
    """
    from megatron_prism.models.specs_torch import ATTENTION_KEYS, MAMBA_KEYS, MLP_KEYS

    for unfused, fused in {**ATTENTION_KEYS, **MLP_KEYS, **MAMBA_KEYS}.items():
        name = name.replace(f".{fused}", f".{unfused}")
    return name


def dense_block_spec(
    config: TransformerConfig,
    residual_multiplier: float,
    vp_stage: int | None = None,
    modules: Modules | None = None,
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage of a dense model.

    Raises:
        ConfigError: if `modules` is None and this machine lacks what upstream's modules need.
    """
    if modules is None:
        require()
        modules = upstream_modules()
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

    from megatron_prism.models.layers.multipliers import scaled_bias_dropout_add

    add = scaled_bias_dropout_add(residual_multiplier)
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=_attention(modules), self_attn_bda=add, mlp=_mlp(modules), mlp_bda=add
        ),
    )
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=modules.norm)


def hybrid_stack_spec(residual_multiplier: float, modules: Modules | None = None) -> ModuleSpec:
    """One mixer per layer: Mamba-2, attention or MLP.

    Raises:
        ConfigError: if `modules` is None and this machine lacks what upstream's modules need.
    """
    if modules is None:
        require(hybrid=True)
        modules = upstream_modules()
    from megatron.core.ssm.mamba_block import MambaStackSubmodules
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixerSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

    from megatron_prism.models.layers.multipliers import scaled_bias_dropout_add

    add = scaled_bias_dropout_add(residual_multiplier)
    mixer = ModuleSpec(
        module=modules.mixer,
        submodules=MambaMixerSubmodules(in_proj=modules.norm_and_column, out_proj=modules.row),
    )
    return ModuleSpec(
        module=modules.stack,
        submodules=MambaStackSubmodules(
            mamba_layer=ModuleSpec(
                module=MambaLayer, submodules=MambaLayerSubmodules(mixer=mixer, mamba_bda=add)
            ),
            attention_layer=ModuleSpec(
                module=TransformerLayer,
                submodules=TransformerLayerSubmodules(self_attention=_attention(modules), self_attn_bda=add),
            ),
            mlp_layer=ModuleSpec(
                module=MLPLayer, submodules=TransformerLayerSubmodules(mlp=_mlp(modules), mlp_bda=add)
            ),
        ),
    )


def _attention(modules: Modules) -> ModuleSpec:
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.spec_utils import ModuleSpec

    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=modules.norm_and_column, core_attention=modules.attention, linear_proj=modules.row
        ),
    )


def _mlp(modules: Modules) -> ModuleSpec:
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec

    return ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=modules.norm_and_column, linear_fc2=modules.row)
    )
