"""What went wrong in a dry run, in one line: the reason, where, and which keys to look at."""

from __future__ import annotations

import traceback
from pathlib import Path

from megatron_prism.errors import PrismError

# Words of a message, a function or a path, and the keys that decide the shapes there; the first that fits counts.
KEYS = {
    "cp_rank": "parallel.context_parallel_size, batch.sequence_length",
    "num_attention_heads": "parallel.tensor_model_parallel_size, architecture.num_attention_heads",
    "num_query_groups": "parallel.tensor_model_parallel_size, architecture.num_query_groups",
    "PP stages": "parallel.pipeline_model_parallel_size, parallel.layers_in_first_stage, "
    "parallel.layers_in_last_stage",
    "pipeline_parallel": "parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size",
    "tensor_parallel": "parallel.tensor_model_parallel_size, parallel.sequence_parallel",
    "mamba_context_parallel": "parallel.context_parallel_size, parallel.tensor_model_parallel_size",
    "blockwise": "parallel.context_parallel_size, batch.sequence_length",
    "row_documents": "intra_document, batch.sequence_length",
    "distrib_optimizer": "parallel.data_parallel_size, precision",
    "optimizer": "optimizer, precision",
    "attention": "parallel.tensor_model_parallel_size, architecture.num_attention_heads, architecture.num_query_groups",
    "mamba": "parallel.tensor_model_parallel_size, architecture.mamba_num_heads, architecture.mamba_num_groups",
    "token_loss": "architecture.vocab_size, parallel.tensor_model_parallel_size",
}
OTHERWISE = "architecture, parallel, batch"


def one_line(problem: BaseException) -> str:
    """The message of a user's mistake as it is; for any other, also the innermost place of our or Megatron's code."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, PrismError):
        return text
    place = _place(problem)
    words = f"{text} {place}"
    keys = next((keys for word, keys in KEYS.items() if word in words), OTHERWISE)
    return f"{type(problem).__name__}: {text[:300]} (in {place}); look at {keys}"


def _place(problem: BaseException) -> str:
    """'path:line, function' of the innermost frame of our or Megatron's code."""
    found = "torch"
    for frame in traceback.extract_tb(problem.__traceback__):
        for root in ("megatron_prism", "megatron/core"):
            _, inside, rest = frame.filename.rpartition(f"/{root}/")
            # These only pass the error on.
            if inside and not rest.startswith("platform/") and not Path(rest).name.startswith("dry_"):
                found = f"{root}/{rest}:{frame.lineno}, {frame.name}"
    return found
