"""The `torch` backend: layer specs that need neither Transformer Engine nor CUDA.

The module tree is Megatron's. The key maps give the checkpoint names of Transformer Engine's fused layers, so both
backends share checkpoints.
"""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.ssm.mamba_block import MambaStack, MambaStackSubmodules
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.ssm.mamba_mixer import MambaMixerSubmodules
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_prism.models.layers.activation import TorchMLP
from megatron_prism.models.layers.attention import SDPACoreAttention
from megatron_prism.models.layers.mamba import TorchMambaMixer
from megatron_prism.models.layers.multipliers import scaled_bias_dropout_add
from megatron_prism.models.layers.norm import RMSNorm
from megatron_prism.models.layers.recompute import KeepsRecipe
from megatron_prism.models.layers.rotary import RotatingSelfAttention

ATTENTION_KEYS = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
MLP_KEYS = {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
MAMBA_KEYS = {"norm.": "mixer.in_proj.layer_norm_"}


class ColumnLinear(KeepsRecipe, ColumnParallelLinear):
    """Megatron's linear layer, which may keep a recipe in place of its input."""


class RowLinear(KeepsRecipe, RowParallelLinear):
    """Megatron's linear layer, which may keep a recipe in place of its input."""


def _attention() -> ModuleSpec:
    return ModuleSpec(
        module=RotatingSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnLinear, core_attention=SDPACoreAttention, linear_proj=RowLinear
        ),
    )


class PlainMLP(TorchMLP):
    """An MLP that is its own spec: upstream warns of specs for other modules than its own MLP."""

    submodules = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__(
            config,
            self.submodules,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )


def dense_block_spec(
    config: TransformerConfig, residual_multiplier: float, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage of a dense model."""
    add = scaled_bias_dropout_add(residual_multiplier)
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=_attention(),
            self_attn_bda=add,
            pre_mlp_layernorm=RMSNorm,
            mlp=PlainMLP,
            mlp_bda=add,
            sharded_state_dict_keys_map={**ATTENTION_KEYS, **MLP_KEYS},
        ),
    )
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


class HybridStack(MambaStack):
    """MambaStack with this backend's norm at the end (upstream uses Transformer Engine's, mamba_block.py:166)."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MambaStackSubmodules,
        *args: Any,
        post_process: bool = True,
        post_layer_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            config, submodules, *args, post_process=post_process, post_layer_norm=False, **kwargs
        )
        self.post_layer_norm = post_layer_norm
        if post_process and post_layer_norm:
            self.final_norm = build_module(
                RMSNorm, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon
            )


def hybrid_stack_spec(residual_multiplier: float) -> ModuleSpec:
    """One mixer per layer: Mamba-2, attention or MLP."""
    add = scaled_bias_dropout_add(residual_multiplier)
    mixer = ModuleSpec(
        module=TorchMambaMixer,
        submodules=MambaMixerSubmodules(in_proj=ColumnLinear, out_proj=RowLinear),
    )
    return ModuleSpec(
        module=HybridStack,
        submodules=MambaStackSubmodules(
            mamba_layer=ModuleSpec(
                module=MambaLayer,
                submodules=MambaLayerSubmodules(
                    norm=RMSNorm, mixer=mixer, mamba_bda=add, sharded_state_dict_keys_map=MAMBA_KEYS
                ),
            ),
            attention_layer=ModuleSpec(
                module=TransformerLayer,
                submodules=TransformerLayerSubmodules(
                    input_layernorm=RMSNorm,
                    self_attention=_attention(),
                    self_attn_bda=add,
                    sharded_state_dict_keys_map=ATTENTION_KEYS,
                ),
            ),
            mlp_layer=ModuleSpec(
                module=MLPLayer,
                submodules=TransformerLayerSubmodules(
                    pre_mlp_layernorm=RMSNorm, mlp=PlainMLP, mlp_bda=add, sharded_state_dict_keys_map=MLP_KEYS
                ),
            ),
        ),
    )
