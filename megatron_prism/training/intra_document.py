"""`intra_document`: the documents of a training row do not see each other; what each backend needs for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models import specs_te
from megatron_prism.models.layers.row_documents import RowDocuments, thd_parameters
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import ParallelConfig

PACKED = "packed_seq_params"


def check_intra_document(backend: str, hybrid: bool, parallel: ParallelConfig) -> None:
    """Check that a backend can separate the documents; the torch backend always can.

    Raises:
        ParallelError: for Transformer Engine with context parallelism. It cuts every document into 2 x CP equal parts
            (thd_get_partitioned_indices), so each would have to be padded, and a row would not keep its length.
        ConfigError: if the installed mamba_ssm or causal_conv1d cannot reset the state inside a row.
    """
    if backend != "te":
        return
    if parallel.context_parallel_size > 1:
        raise ParallelError(
            f"intra_document=true, backend=te, context_parallel_size={parallel.context_parallel_size}: Transformer "
            "Engine would have to pad every document to a multiple of twice that size; use backend=torch, or "
            "context_parallel_size=1"
        )
    if hybrid:
        specs_te.require(hybrid=True)
        from megatron.core.ssm.mamba_mixer import _check_mamba_sequence_packing_support

        # The kernel of training takes seq_idx (ssm/mamba_mixer.py:652-677).
        supported, reason = _check_mamba_sequence_packing_support(for_inference_not_training=False)
        if not supported:
            raise ConfigError(f"intra_document=true, backend=te: {reason}; upgrade it, or use backend=torch")


def place_documents(batch: dict[str, Any], numbers: Tensor | None, backend: str) -> dict[str, Any]:
    """A micro-batch with the `packed_seq_params` that separate its documents.

    For Transformer Engine, rows are joined to one row `[1, rows * sequence_length]`, as its format 'thd' requires.

    Args:
        numbers: of each token's document, `[rows, sequence_length]`, on the CPU; None: rows are not separated.
    """
    if numbers is None:
        return batch
    documents = RowDocuments.from_numbers(numbers, device())
    if backend != "te":
        return batch | {PACKED: documents}
    joined: dict[str, Tensor] = {key: value.flatten()[None] for key, value in batch.items()}
    return joined | {PACKED: thd_parameters(documents, device())}
