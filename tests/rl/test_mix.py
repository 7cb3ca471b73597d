"""The paper's mixes, chosen by numbers of correct answers."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_prism.errors import ConfigError, DataError
from megatron_prism.rl.difficulty import Counted
from megatron_prism.rl.mix import BALANCED, MC, PromptMix
from megatron_prism.verification.problems import Problem


def counted(domain: str, correct: list[int]) -> list[Counted]:
    kind = {"math": "math", "code": "code", "science": "choice"}[domain]
    return [
        Counted(
            Problem(f"{domain}{n}", domain, f"User: {n} {{x}}?\nAssistant:", kind, "A", ["assert f()"]), k, 16
        )
        for n, k in enumerate(correct)
    ]


STORE = [
    *counted("math", [1, 1, 1, 1, 1, 2, 0, 16]),
    *counted("code", [1, 16, 0, 0, 0, 0]),
    *counted("science", [3, 0, 0, 0]),
]


def ids(stage: PromptMix) -> list[str]:
    return [problem.id for problem in stage.choose(STORE)]


def test_unbalanced_is_math_solved_once_and_the_rest_solved_at_all():
    assert ids(PromptMix()) == ["math0", "math1", "math2", "math3", "math4", "code0", "code1", "science0"]
    assert ids(PromptMix(domains=MC)) == ["math0", "math1", "math2", "math3", "math4", "code0", "code1"]


def test_balanced_fills_up_with_unsolved_ones():
    chosen = PromptMix(mix=BALANCED).choose(STORE)
    # Science has only three unsolved prompts to fill up with.
    assert Counter(problem.domain for problem in chosen) == {"math": 5, "code": 5, "science": 4}
    correct = {each.problem.id: each.correct for each in STORE}
    added = [p.id for p in chosen if p.domain == "code"][2:]
    assert all(correct[name] == 0 for name in added)
    assert added != [p.id for p in PromptMix(mix=BALANCED, seed=2).choose(STORE) if p.domain == "code"][2:]


def test_balanced_varies_the_instructions_of_science_only():
    store = counted("science", [1] * 40) + counted("math", [1] * 40)
    chosen = PromptMix(mix=BALANCED, domains=["math", "science"]).choose(store)
    asked = {each.problem.id: each.problem.prompt for each in store}
    changed = [p for p in chosen if p.prompt != asked[p.id]]
    assert {p.domain for p in changed} == {"science"}
    assert 20 < len(changed) < 40
    assert all("{x}?" in p.prompt and p.prompt.endswith("\nAssistant:") for p in chosen)


def test_a_limit_draws_a_fair_part():
    assert Counter(p.domain for p in PromptMix(limit=2).choose(STORE)) == {"math": 2, "code": 2, "science": 1}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mix": "balancd"}, "did you mean 'balanced'"),
        ({"domains": []}, "name at least one domain, and each only once"),
        ({"domains": ["maths"]}, "no range for domain 'maths'; did you mean 'math'"),
        ({"ranges": {"math": [2, 1], "code": [1, 1], "science": [1, 1]}}, "ranges.math"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_impossible_settings(fields, said):
    with pytest.raises(ConfigError, match=said):
        PromptMix(**fields)


def test_a_store_without_a_domain_or_without_a_match(tmp_path, monkeypatch):
    from megatron_prism.rl import mix

    class Folder:
        path = tmp_path

    monkeypatch.setattr(mix, "read_difficulty", lambda folder: counted("math", [0, 0]))
    with pytest.raises(DataError, match="no prompts of domain 'code'"):
        PromptMix().run({"difficulty": Folder()}, tmp_path)
    with pytest.raises(DataError, match="no prompt has a number of correct answers"):
        PromptMix(domains=["math"]).run({"difficulty": Folder()}, tmp_path)
