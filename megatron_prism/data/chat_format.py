"""The plain-text chat format of the shoebox corpus and of the prompts made from it: `User: QUESTION\\nAssistant:`.

General stages assume no format: a suite's prompts are complete texts, and a recipe passes `STOP` where its model was
trained on this format.
"""

from __future__ import annotations

USER, ASSISTANT = "User:", "Assistant:"
# A model trained on dialogues continues with the next question; the beginning of that question ends the answer.
STOP = [USER]


def chat_prompt(question: str) -> str:
    """The text before the assistant's answer."""
    return f"{USER} {question}\n{ASSISTANT}"


def chat_turn(question: str, answer: str) -> str:
    """A question with its answer."""
    return f"{chat_prompt(question)} {answer}"


def question_of(prompt: str) -> str | None:
    """The question in a prompt made by `chat_prompt`; None for a prompt in another format."""
    before, after = f"{USER} ", f"\n{ASSISTANT}"
    if not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    return prompt[len(before) : -len(after)]
