"""Trains a byte-level BPE.

It splits numbers into single digits and has a token for every byte, so every text survives a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_prism.errors import DataError
from megatron_prism.models.model_folder import TOKENIZER_CONFIG, TOKENIZER_JSON
from megatron_prism.pipeline.artifact import write_json

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD)
BYTES = 256
# How text is split before merging: Qwen2's pattern (from its tokenizer.json), in which each digit is separate.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE of exactly `vocab_size` tokens; writes the two files that transformers' AutoTokenizer
    reads.

    Raises:
        DataError: if the texts are too few for this many tokens.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise DataError(
            f"the corpus yields only {backend.get_vocab_size()} tokens, but vocab_size={vocab_size}; "
            "lower it or use more text"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_JSON).write_text(backend.to_str(), encoding="utf-8")
    write_json(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
        },
    )
