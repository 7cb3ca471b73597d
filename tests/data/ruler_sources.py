"""Small files and tokenizers for RULER: essays, SQuAD and HotpotQA as published, and two kinds of tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_prism.data.ruler.sources import Sources, load_sources
from megatron_prism.data.ruler.tasks import TASKS
from megatron_prism.data.ruler.word_lists import ADJECTIVES, NOUNS
from megatron_prism.data.tokenizer import Tokenizer, train_tokenizer

PLACES = ("harbor", "valley", "market", "library", "garden", "tower")


def prose(sentences: int, seed: int = 0) -> str:
    """Sentences of built-in words, some with odd punctuation and characters."""
    rng = random.Random(seed)
    made = []
    for number in range(sentences):
        adjective, noun, other = rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(NOUNS)
        end = rng.choice([".", "!", "?", '."', "…", " (really)."])
        made.append(f"The {adjective} {noun} saw {number} naïve {other}s, it's said;  they didn't mind{end}")
    return "\n\n".join(" ".join(made[start : start + 5]) for start in range(0, sentences, 5))


def write_sources(folder: Path) -> dict[str, Path]:
    """Write essays.txt, squad.json and hotpot.json, in which all documents and questions differ."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "essays.txt").write_text(prose(4000), encoding="utf-8")
    articles = []
    for article in range(8):
        paragraphs = []
        for number in range(12):
            owner = f"Owner{article}x{number}"
            context = (
                f"{prose(6, 100 * article + number)}\nThe {PLACES[article % 6]} belongs to {owner} alone."
            )
            question = {
                "question": f"Whose is part {number} of town {article}?",
                "answers": [{"text": owner}],
            }
            paragraphs.append({"context": context, "qas": [question]})
        paragraphs[0]["qas"].append({"question": "Unknown?", "answers": [], "is_impossible": True})
        articles.append({"title": str(article), "paragraphs": paragraphs})
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    records = []
    for number in range(40):
        context = [[f"Title{number}", [f"Title{number} lies near Town{number}. ", "It is old."]]]
        context += [[f"Town{number}", [f"Town{number} is ruled by Queen{number}.", prose(4, number)]]]
        context += [[f"Other{number}-{other}", [prose(5, 50 * number + other)]] for other in range(4)]
        records.append(
            {"question": f"Who rules near {number}?", "answer": f"Queen{number}", "context": context}
        )
    (folder / "hotpot.json").write_text(json.dumps(records))
    return {"essays": folder / "essays.txt", "squad": folder / "squad.json", "hotpot": folder / "hotpot.json"}


def all_sources(folder: Path) -> Sources:
    """Sources of every registered task from files like the user's."""
    return load_sources(TASKS.values(), **write_sources(folder))


def byte_level_tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer([prose(600)], 800, folder)


def metaspace_tokenizer(folder: Path) -> Tokenizer:
    """Like a SentencePiece tokenizer: spaces are part of the words, and a space is added before a text."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False
    )
    backend.train_from_iterator([prose(600)], trainer)
    return _save(backend, folder)


def crossing_tokenizer(folder: Path) -> Tokenizer:
    """Tokens may contain spaces ("The quick" may be one token), so every count by words is wrong."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "</s>"], show_progress=False)
    lines = [line for line in (prose(60) + "\nThe grass is green. The sky is blue.").splitlines() if line]
    backend.train_from_iterator(lines, trainer)
    return _save(backend, folder)


def _save(backend: Backend, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return Tokenizer.load(folder)
