"""Recall documents: one value for a fact, asked in the words of the compact tasks, in every length and density."""

from __future__ import annotations

import random
import re
from itertools import islice

from megatron_prism.data import installed_text
from megatron_prism.data.ruler.tasks import COMPACT_QUESTION, COMPACT_TASKS, COMPACT_VALUES, NOISE_SENTENCES
from megatron_prism.data.shoebox.retrieval import MAX_CHARACTERS, MIN_CHARACTERS, documents

PROSE = [f"Sentence number {number} says nothing." for number in range(50)]
FACT = re.compile(rf"\b({'|'.join(COMPACT_VALUES)}) (\w+)\.")
TEXTS = list(islice(documents(random.Random(3), PROSE), 400))


def test_a_fact_keeps_its_value_and_the_value_belongs_to_its_key():
    for text in TEXTS:
        said = {}
        for key, value in FACT.findall(text):
            assert said.setdefault(key, value) == value
            assert value in COMPACT_VALUES[key]


def test_documents_ask_as_the_tasks_do():
    question = COMPACT_QUESTION.format(query="animal")
    assert COMPACT_TASKS["needle_single"].prompt.endswith(COMPACT_QUESTION)
    assert sum(question in text for text in TEXTS) > 100


def test_lengths_and_densities_vary():
    lengths = sorted(map(len, TEXTS))
    assert lengths[0] >= MIN_CHARACTERS - 1
    assert lengths[-1] < MAX_CHARACTERS + 150
    assert lengths[200] > 2 * MIN_CHARACTERS
    shares = sorted(sum(len(key) + len(value) + 2 for key, value in FACT.findall(t)) / len(t) for t in TEXTS)
    assert shares[20] < 0.1
    assert shares[-20] > 0.6


def test_both_haystacks_come():
    assert any(PROSE[0] in text for text in TEXTS)
    assert any(NOISE_SENTENCES[0] in text for text in TEXTS)


def test_the_same_seed_gives_the_same_documents():
    assert list(islice(documents(random.Random(3), PROSE), 400)) == TEXTS


def test_sentences_are_whole_and_on_one_line():
    text = "First line of\nsome ordinary prose here. second begins small. Code() is no sentence at all, x."
    assert installed_text.sentences([text, text]) == ["First line of some ordinary prose here."]
