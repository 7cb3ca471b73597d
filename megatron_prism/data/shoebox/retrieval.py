"""Documents for recall over a distance: facts between other sentences, repeated or asked about later.

A small model learns to look back only if this often reduces the loss. So the share of facts ranges from all sentences
to two in a hundred, and the length from a few sentences to hundreds. RULER's compact tasks (`data.ruler`) are the far
end of this range: a fact that is stated once and asked about at the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from megatron_prism.data.ruler.tasks import COMPACT_NEEDLE, COMPACT_QUESTION, COMPACT_VALUES, NOISE_SENTENCES

# Characters of a document. The logarithm of the length is random; an exponent below 1 favours long documents.
MIN_CHARACTERS, MAX_CHARACTERS, LENGTH_EXPONENT = 160, 2200, 0.7
# The largest share of a document's sentences that are not facts.
MAX_NOISE = 0.97
# The share of facts that are asked for, in the words of the compact tasks, instead of stated.
QUESTION_SHARE = 0.3
# The share of documents with prose between the facts; the others have RULER's five sentences.
PROSE_SHARE = 0.4


def documents(rng: random.Random, prose: Sequence[str]) -> Iterator[str]:
    """Endless documents.

    Args:
        prose: sentences between the facts; if there are none, RULER's sentences are used.
    """
    while True:
        yield document(rng, prose)


def document(rng: random.Random, prose: Sequence[str]) -> str:
    """One document; a fact keeps its value throughout."""
    keys = rng.sample(sorted(COMPACT_VALUES), rng.randint(1, len(COMPACT_VALUES)))
    values = {key: rng.choice(COMPACT_VALUES[key]) for key in keys}
    sentences = prose if rng.random() < PROSE_SHARE and prose else NOISE_SENTENCES
    noise, characters = (
        MAX_NOISE * rng.random(),
        MIN_CHARACTERS * (MAX_CHARACTERS / MIN_CHARACTERS) ** (rng.random() ** LENGTH_EXPONENT),
    )
    at, length, pieces = rng.randrange(len(sentences)), 0, []
    while length < characters:
        if rng.random() < noise:
            piece = f" {sentences[at % len(sentences)]}"
            at += 1
        elif rng.random() < QUESTION_SHARE:
            key = rng.choice(keys)
            piece = f"{COMPACT_QUESTION.format(query=key)} {values[key]}."
        else:
            key = rng.choice(keys)
            piece = f" {COMPACT_NEEDLE.format(key=key, value=values[key])}"
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces).strip()
