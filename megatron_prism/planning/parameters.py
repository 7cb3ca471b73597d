"""Every parameter that a rank holds, by size, in the order in which Megatron-Core builds them.

The sizes are those of the `torch` backend's modules (models/specs_torch.py). Backend te has the same parameters; its
norms stand inside its linear layers, which moves a bucket's padding by a few numbers and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.platform.process_groups import ParallelConfig

# Taps of Mamba's convolution (mamba_mixer.py: d_conv).
TAPS = 4


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rank.

    Attributes:
        name: as in the module, without the number of its layer.
        size: numbers on this rank.
        trained: whether it has a gradient.
        shared: a tied embedding that two pipeline stages hold, which DDP gives a bucket of its own.
    """

    name: str
    size: int
    trained: bool = True
    shared: bool = False


def chunk_layers(architecture: Architecture, parallel: ParallelConfig) -> list[list[tuple[int, int]]]:
    """`[stage][chunk]`: the first layer and the number of layers of each model chunk of each pipeline stage.

    Megatron numbers the layers chunk by chunk, and within a chunk stage by stage (transformer_layer.py:85).
    """
    virtual = parallel.virtual_pipeline_model_parallel_size or 1
    counts = parallel.layers_per_stage(architecture.num_layers)
    found: list[list[tuple[int, int]]] = [[] for _ in counts]
    begin = 0
    for _ in range(virtual):
        for stage, count in enumerate(counts):
            found[stage].append((begin, count // virtual))
            begin += count // virtual
    return found


def kinds_of_stage(architecture: Architecture, parallel: ParallelConfig, stage: int) -> list[str]:
    """The parts of each layer of a pipeline stage, as in `Architecture.kinds_of_layers`."""
    kinds = architecture.kinds_of_layers
    return [
        kind
        for begin, count in chunk_layers(architecture, parallel)[stage]
        for kind in kinds[begin : begin + count]
    ]


def stage_parameters(
    architecture: Architecture, parallel: ParallelConfig, stage: int, trainable: str = "all"
) -> list[list[Parameter]]:
    """The parameters of a rank of a pipeline stage, for each of its model chunks, in the order of the modules.

    Args:
        trainable: as in TrainConfig.
    """
    a, tp, stages = architecture, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    everything = trainable == "all"
    table = a.padded_vocab_size(tp) // tp * a.hidden_size
    tied = a.tie_word_embeddings
    chunks = []
    spans = chunk_layers(a, parallel)[stage]
    for number, (begin, count) in enumerate(spans):
        first = stage == 0 and number == 0
        last = stage == stages - 1 and number == len(spans) - 1
        found = [Parameter("embedding", table, everything, tied and stages > 1)] if first else []
        for kind in a.kinds_of_layers[begin : begin + count]:
            found += layer_parameters(a, kind, tp, trainable)
        if last:
            found.append(Parameter("final_norm", a.hidden_size, everything))
            if not (tied and first):
                found.append(Parameter("output_layer", table, everything, tied and stages > 1))
        chunks.append(found)
    return chunks


def layer_parameters(
    architecture: Architecture, kinds: str, tensor_parallel_size: int = 1, trainable: str = "all"
) -> list[Parameter]:
    """The parameters of one layer on one tensor-parallel rank.

    Args:
        kinds: the parts of the layer: ATTENTION and MLP of a dense model, or one of the three kinds.
    """
    attention = {"linear_proj", "linear_qkv"}
    return [
        Parameter(name, size, trainable == "all" or name in attention)
        for kind in kinds
        for name, size in _sizes(architecture, kind, tensor_parallel_size)
    ]


def _sizes(a: Architecture, kind: str, tp: int) -> Iterator[tuple[str, int]]:
    hidden = a.hidden_size
    if kind == ATTENTION:
        width, groups = a.num_attention_heads * a.head_dim // tp, a.num_query_groups * a.head_dim // tp
        yield "input_layernorm", hidden
        yield "linear_proj", hidden * width
        yield "linear_qkv", hidden * (width + 2 * groups)
    elif kind == MLP:
        inner = a.ffn_hidden_size // tp
        yield "pre_mlp_layernorm", hidden
        yield "linear_fc1", hidden * inner * (2 if a.activation == "swiglu" else 1)
        yield "linear_fc2", hidden * inner
    else:
        assert kind == MAMBA
        heads, inner = a.mamba_num_heads // tp, a.mamba_num_heads * a.mamba_head_dim // tp
        mixed = inner + 2 * a.mamba_num_groups * a.mamba_state_dim // tp
        yield from (("dt_bias", heads), ("A_log", heads), ("D", heads))
        yield "in_proj", hidden * (inner + mixed + heads)
        yield from (("conv1d.weight", mixed * TAPS), ("conv1d.bias", mixed), ("mixer.norm", inner))
        yield "out_proj", inner * hidden
        yield "norm", hidden


def count_parameters(architecture: Architecture) -> int:
    """Parameters of the whole model, tied ones once."""
    return sum(each.size for chunk in stage_parameters(architecture, ParallelConfig(), 0) for each in chunk)
