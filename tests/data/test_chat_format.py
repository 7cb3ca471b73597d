"""The chat format, and that no general stage assumes it."""

from __future__ import annotations

from pathlib import Path

import megatron_prism
from megatron_prism.data.chat_format import STOP, chat_prompt, chat_turn, question_of


def test_a_question_comes_back_out_of_its_prompt():
    assert chat_prompt("1+1?") == "User: 1+1?\nAssistant:"
    assert chat_turn("1+1?", "2") == "User: 1+1?\nAssistant: 2"
    assert question_of(chat_prompt("1+1?")) == "1+1?"
    assert question_of("Q: 1+1?\nA:") is None
    assert question_of("User: 1+1?") is None
    assert STOP == ["User:"]


def test_the_format_is_written_in_one_file_only():
    package = Path(megatron_prism.__file__).parent
    files = [*package.rglob("*.py"), *(package.parent / "recipes").glob("*.py")]
    having = [file.name for file in files if '"User:' in file.read_text() or "Assistant:" in file.read_text()]
    assert having == ["chat_format.py"]
