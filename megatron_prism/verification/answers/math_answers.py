"""Where a mathematical or short answer stands in a completion."""

from __future__ import annotations

from megatron_prism.verification.answers.extract import boxed_answer, final_part, tail
from megatron_prism.verification.answers.statements import stated_answer


def extract_math(completion: str) -> str | None:
    """The answer in a completion: its box, else what it states as its answer, else its last formula, else None.

    A bare last number does not count: it would reward a base model for stopping at the right moment.
    """
    boxed = boxed_answer(final_part(completion))
    if boxed is not None:
        return boxed or None
    return stated_answer(tail(completion))
