"""Finding the program in a completion."""

from __future__ import annotations

import re

from megatron_prism.verification.answers.extract import final_part

_FENCE = re.compile(
    r"^[ \t]*```(?:python|py|python3)?[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE
)


def extract_code(completion: str) -> str | None:
    """The last ```python fenced block (a fence without a language counts), or None."""
    blocks = _FENCE.findall(final_part(completion))
    return blocks[-1] if blocks else None
