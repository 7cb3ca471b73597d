"""The logits of two models for `prism convert verify --logits`: on random tokens, or on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError


def compare_logits(
    a: Any, b: Any, *, text: Path | None, dtype: str, tolerance: float
) -> tuple[Any, float, str]:
    """Run two opened models on the same tokens.

    Returns:
        the comparison, the allowed difference, and a description of the input.

    Raises:
        ConfigError: for a text that cannot be used, or a dtype that the computation does not support.
    """
    from megatron_prism.conversion.logits import compare, folder_outputs, random_tokens
    from megatron_prism.conversion.stage import CHECK_SEED, torch_dtype

    wanted = torch_dtype(dtype)
    if wanted is None:
        raise ConfigError(f"--dtype {dtype}: --logits needs fp32, bf16 or fp16")
    if text is not None:
        tokens, what = _tokens_of(text, a, b), f"the tokens of {text}"
    else:
        tokens = random_tokens(a.architecture, b.architecture, seed=CHECK_SEED)
        what = f"{tokens.numel()} random tokens, seed {CHECK_SEED}"
    compared = compare(
        folder_outputs(a.path, tokens, wanted), folder_outputs(b.path, tokens, wanted), tolerance
    )
    return compared, compared.allowed(tolerance), what


def _tokens_of(text: Path, a: Any, b: Any) -> Any:
    """A text as token ids `[1, seq]`, by the tokenizer of the first model that has one."""
    import torch

    from megatron_prism.data.tokenizer import Tokenizer
    from megatron_prism.data.tokenizer_files import vocabulary_file
    from megatron_prism.pipeline.json_text import read_text

    try:
        content = read_text(text, ConfigError)
    except ConfigError as problem:
        raise ConfigError(f"--text {problem}") from None
    for each in (a.files, b.files):
        if each is not None and vocabulary_file(each) is not None:
            ids = Tokenizer.load(each).encode(content)
            limit = min(model.architecture.max_position_embeddings for model in (a, b))
            rows = min(model.architecture.vocab_size for model in (a, b))
            if not ids:
                raise ConfigError(f"--text {text}: the tokenizer of {each} makes no tokens of this text")
            if max(ids) >= rows:
                raise ConfigError(
                    f"--text {text}: the tokenizer of {each} gives token id {max(ids)}, but vocab_size is {rows}"
                )
            return torch.tensor([ids[:limit]])
    raise ConfigError(
        f"--text {text}: neither {a.path} nor {b.path} has a tokenizer; omit --text to use random tokens"
    )
