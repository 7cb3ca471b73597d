"""Small tokenizers in the shapes that published models have, made by the libraries those models used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers import decoders as decode

BOS, EOS = "<s>", "</s>"
TRAINING_TEXT = Path(__file__).parents[1] / "docs" / "architecture.md"


def template(tokenizer: Tokenizer, single: str, *names: str) -> processors.TemplateProcessing:
    tokens = [(name, tokenizer.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens)


def byte_level(special: tuple[str, ...] = (BOS, EOS)) -> Tokenizer:
    """One token per byte."""
    known = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decode.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def metaspace() -> Tokenizer:
    """What a SentencePiece model is converted to, as LLaMA 2 and Mistral 7B have it."""
    known = {"<unk>": 0, BOS: 1, EOS: 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for character in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>/":
        known[character] = len(known)
    known["▁a"], known["th"] = len(known), len(known) + 1
    tokenizer = Tokenizer(
        models.BPE(
            vocab=known,
            merges=[("▁", "a"), ("t", "h")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decode.Sequence(
        [decode.Replace("▁", " "), decode.ByteFallback(), decode.Fuse(), decode.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", BOS, EOS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def with_begin(folder: Path) -> Path:
    """A tokenizer whose template begins a text with `<s>`."""
    tokenizer = byte_level()
    tokenizer.post_processor = template(tokenizer, f"{BOS} $A", BOS)
    return save(tokenizer, folder, bos_token=BOS)


def family(name: str, folder: Path) -> Path:
    """The tokenizer of a published model, as far as its shape goes.

    LLaMA 3.1: byte-level and a template in one sequence. Mistral 7B: spaces as "▁", and a template. Mistral Small and
    Nemotron-H: byte-level and a template. The Granite models: byte-level alone, and add_bos_token=false.
    """
    if name == "llama-3.1-8b":
        begin, end = "<|begin_of_text|>", "<|end_of_text|>"
        tokenizer = byte_level((begin, end, "<|eot_id|>"))
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template(tokenizer, f"{begin} $A", begin)]
        )
        return save(tokenizer, folder, bos_token=begin, eos_token=end)
    if name == "mistral-7b-v0.1":
        tokenizer = metaspace()
        tokenizer.post_processor = template(tokenizer, f"{BOS} $A", BOS)
        more = {"add_bos_token": True, "add_eos_token": False, "unk_token": "<unk>"}
        return save(tokenizer, folder, bos_token=BOS, tokenizer_class="LlamaTokenizer", **more)
    if name in ("mistral-small-24b", "nemotron-h-8b"):
        return with_begin(folder)
    assert name.startswith("granite")
    end = "<|end_of_text|>"
    tokenizer = byte_level((end, "<|start_of_role|>"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    config = {"bos_token": end, "eos_token": end, "pad_token": end, "unk_token": end, "add_bos_token": False}
    return save(tokenizer, folder, tokenizer_class="GPT2Tokenizer", **config)


FAMILIES = {
    "llama-3.1-8b": "<|begin_of_text|>",
    "mistral-7b-v0.1": BOS,
    "mistral-small-24b": BOS,
    "nemotron-h-8b": BOS,
    "granite-3.3-8b": None,
    "granite-4.0-micro": None,
    "granite-4.0-h-micro": None,
}


def sentencepiece_folder(folder: Path, kind: str, vocab_size: int = 420, **config: Any) -> Path:
    """A folder with nothing but a trained `tokenizer.model`, and tokenizer_config.json where there is a `config`.

    "bpe" is trained as LLaMA 2's (nothing normalised, byte fallback), "unigram" as SentencePiece does by default.
    """
    from sentencepiece import SentencePieceTrainer

    options: dict[str, Any] = {"byte_fallback": True, "split_digits": True}
    if kind == "bpe":
        options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT.read_text().splitlines()),
        model_writer=written,
        model_type=kind,
        vocab_size=vocab_size,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
