"""Which prompts a run sees, in which order, and which are dropped before it begins."""

from __future__ import annotations

import json

import pytest
from data_artifacts import make_artifact

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.rl.check_prompts import FAILED_SOLUTION, NO_ANSWER, REPEATED, CheckPrompts
from megatron_prism.rl.prompts import PromptOrder, check_lengths, load_prompts, rates_by_domain
from megatron_prism.verification.problems import Problem


def problem(number: int, domain: str = "math") -> Problem:
    return Problem(f"{domain}-{number}", domain, f"User: {number}?\nAssistant:", "math", str(number))


def test_every_epoch_meets_every_prompt_once_in_another_order():
    order = PromptOrder(7, seed=3)
    epochs = [order.take(7 * epoch, 7) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert PromptOrder(7, seed=4).take(0, 7) != epochs[0]


def test_a_resume_skips_and_repeats_nothing():
    whole = PromptOrder(7, seed=3).take(0, 40)
    for stop in (1, 6, 7, 20):
        assert PromptOrder(7, seed=3).take(stop, 40 - stop) == whole[stop:]


def test_no_prompts_and_too_long_prompts():
    with pytest.raises(DataError, match="no prompts to train on"):
        PromptOrder(0, seed=1)
    problems = [problem(1), problem(2), problem(3, "science")]
    assert check_lengths(problems, [5, 9, 7], 8) == ([problems[0], problems[2]], {"math": 1})
    with pytest.raises(DataError, match=r"context_length=5: every prompt .* shortest has 5"):
        check_lengths(problems, [5, 9, 7], 5)


def test_rates_by_domain():
    problems = [problem(1), problem(2), problem(3, "science")]
    assert rates_by_domain(problems, [1.0, 0.0, 0.25]) == {"math": 0.5, "science": 0.25, "all": 1.25 / 3}


def records(*changes: dict) -> list[dict]:
    base = {"domain": "math", "prompt": "User: 1+1?\nAssistant:", "kind": "math", "answer": "2", "tests": []}
    return [base | {"id": f"p{number}"} | change for number, change in enumerate(changes)]


def checked(folder, lines: list[dict]):
    folder.mkdir(exist_ok=True)
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return make_artifact(CheckPrompts(files=[str(file)]), folder / "checked")


def test_what_no_answer_could_be_right_for_is_dropped_and_counted(tmp_path):
    code = {"kind": "code", "domain": "code", "answer": "", "tests": ["assert f(2) == 4"]}
    artifact = checked(
        tmp_path,
        records(
            {"solution": r"\boxed{2}"},
            {"solution": r"\boxed{3}"},
            {"answer": " "},
            {"id": "p0"},
            code | {"solution": "```python\ndef f(x):\n    return x * x\n```"},
            code | {"solution": "```python\ndef f(x):\n    return x\n```"},
            code | {"tests": []},
            {},
        ),
    )
    assert artifact.metrics["dropped"] == {NO_ANSWER: 2, REPEATED: 1, FAILED_SOLUTION: 2}
    assert artifact.metrics["failed"] == ["p1", "p5"]
    assert [each.id for each in load_prompts(artifact.path)] == ["p4", "p0", "p7"]


def test_nothing_left_and_lines_that_are_no_prompts(tmp_path):
    with pytest.raises(DataError, match=r"no prompt is left; dropped prompts by reason: \{'no answer': 1\}"):
        checked(tmp_path, records({"answer": ""}))
    with pytest.raises(DataError, match=r"mine.jsonl:1: unknown key 'colour'"):
        checked(tmp_path / "other", records({"colour": "red"}))
    with pytest.raises(ConfigError, match="name files of JSON lines"):
        CheckPrompts().run({}, tmp_path)


def test_a_changed_file_makes_another_artifact(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("{}")
    before = CheckPrompts(files=[str(file)]).fingerprint({})
    file.write_text("{} ")
    assert CheckPrompts(files=[str(file)]).fingerprint({}) != before
