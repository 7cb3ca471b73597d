"""Which fenced block of a completion is the program."""

from __future__ import annotations

from megatron_prism.verification.answers.programs import extract_code


def test_the_last_fenced_block_of_the_final_part_is_taken():
    text = "<think>```python\na\n```</think>\n```python\nb\n```\ntext\n```py\nc = '``'\n```\nbye"
    assert extract_code(text) == "c = '``'\n"
    assert extract_code("```\nd\n```") == "d\n"
    assert extract_code("```python\nunclosed") is None
    assert extract_code("def f(x): return x") is None
