from __future__ import annotations

import time

import pytest

from megatron_prism.verification.answers.choice import extract_choice
from megatron_prism.verification.answers.math_answers import extract_math
from megatron_prism.verification.answers.statements import stated_answer


@pytest.mark.parametrize(
    "text",
    [
        "The answer would be 7.",
        "The answer is therefore 7.",
        "The answer is thus $7$",
        "The answer is not 8 but 7.",
        "The answer is 7, not 8.",
        "Ans: 7",
        "Result: 7",
        "The final result is 7.",
        "The answer is: 7</s>",
        "The answer is 7.<|im_end|>",
        "It is not hard to see: the answer is 7.",
        "What is the sum? $7$",
        "The answer is 7. Or equivalently seven.",
    ],
)
def test_a_statement_is_read(text):
    assert stated_answer(text) == "7"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is not $7$.",
        "I don't think the answer is 7.",
        "It's not true that the answer is 7",
        "Suppose the answer is 7",
        "Maybe the answer is 7",
        "The answer might be $7$",
        "Consider $x=7$",
        "It is false that $x=7$",
        "Is it $7$?",
        "The answer is $7$. No wait, $8$.",
        "The answer is 7. Actually 8.",
        "The answer is 7. Or 8.",
        "The answer is 7, if n is even, and 8, if n is odd.",
        "so 7",
    ],
)
def test_a_denial_a_doubt_or_a_correction_is_no_statement(text):
    assert stated_answer(text) is None


@pytest.mark.parametrize(
    "unit", ["a", "A", "7", " ", "\n", "$", "*", "(", "\\(", "not ", "Answer: A ", "the answer is "]
)
@pytest.mark.parametrize("extract", [extract_choice, extract_math])
def test_long_repetition_takes_no_time(extract, unit):
    start = time.process_time()
    extract("The answer is " + unit * (100_000 // len(unit)))
    assert time.process_time() - start < 0.5
