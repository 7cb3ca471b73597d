"""Documents for recall over a distance: facts between other sentences, said again and again, or asked for.

A small model learns to look back only where looking back pays often. So documents range from nothing but facts to two
in a hundred sentences, and from a few sentences to hundreds; what RULER asks (`data.ruler`, the compact tasks) is the
far end of that range: a fact said once and asked for at the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from megatron_prism.data.ruler.tasks import COMPACT_NEEDLE, COMPACT_QUESTION, COMPACT_VALUES, NOISE_SENTENCES

# Characters of a document; the logarithm is drawn, leaning to the long end.
SHORTEST, LONGEST, LEANING = 160, 2200, 0.7
# Of a document's sentences, at most this share is not a fact.
MOST_NOISE = 0.97
# Of the facts, this share is asked for, in the words of the compact tasks, and not only said.
ASKED = 0.3
# Of the documents, this share has prose between the facts, the others have RULER's five sentences.
PROSE = 0.4


def documents(rng: random.Random, prose: Sequence[str]) -> Iterator[str]:
    """Endless documents.

    Args:
        prose: sentences to hide facts among; where there are none, RULER's serve.
    """
    while True:
        yield document(rng, prose)


def document(rng: random.Random, prose: Sequence[str]) -> str:
    """One document; a fact keeps its value throughout."""
    keys = rng.sample(sorted(COMPACT_VALUES), rng.randint(1, len(COMPACT_VALUES)))
    values = {key: rng.choice(COMPACT_VALUES[key]) for key in keys}
    sentences = prose if rng.random() < PROSE and prose else NOISE_SENTENCES
    noise, characters = (
        MOST_NOISE * rng.random(),
        SHORTEST * (LONGEST / SHORTEST) ** (rng.random() ** LEANING),
    )
    at, length, pieces = rng.randrange(len(sentences)), 0, []
    while length < characters:
        if rng.random() < noise:
            piece = f" {sentences[at % len(sentences)]}"
            at += 1
        elif rng.random() < ASKED:
            key = rng.choice(keys)
            piece = f"{COMPACT_QUESTION.format(query=key)} {values[key]}."
        else:
            key = rng.choice(keys)
            piece = f" {COMPACT_NEEDLE.format(key=key, value=values[key])}"
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces).strip()
