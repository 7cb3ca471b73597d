from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_prism.cli.main import main
from megatron_prism.evaluation.scores import write_scores


def select(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "select", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def checkpoint(folder, rates, seed, samples=4):
    """An evaluation whose suites have 60 problems with these chances."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    problems = {
        suite: {
            f"p{n}": (int(count), samples) for n, count in enumerate(generator.binomial(samples, rate, 60))
        }
        for suite, rate in rates.items()
    }
    means = {
        suite: sum(right for right, _ in each.values()) / 60 / samples for suite, each in problems.items()
    }
    scores = {suite: {"pass_rate": mean, "low": 0, "high": 1} for suite, mean in means.items()}
    write_scores(folder, {"suites": scores}, problems)
    return folder


def test_both_rules_choose_and_the_numbers_are_corrected(tmp_path, capsys):
    equal = [checkpoint(tmp_path / f"step{n}", {"math": 0.5, "code": 0.3}, n) for n in range(8)]
    code, said, _ = select(capsys, *equal, "--json", "-")
    assert code == 0
    rows = {(row["rule"], row["of"]): row for row in json.loads(said)["selected"]}
    best, each = rows["best average", "mean of 2 suites"], rows["best of each suite", "mean of 2 suites"]
    math = rows["best of each suite", "math"]
    assert len(best["chosen"]) == 1
    assert each["chosen"] == [*math["chosen"], *rows["best of each suite", "code"]["chosen"]]
    # Choosing for each suite finds a larger sum.
    assert each["printed"] >= best["printed"]
    assert best["bias"] == pytest.approx(best["printed"] - best["corrected"])
    assert best["bias"] > 0
    assert math["low"] < math["corrected"] < math["high"]
    assert "corrected" in select(capsys, *equal)[1]


def test_a_checkpoint_that_is_far_better_is_not_corrected(tmp_path, capsys):
    poor = [checkpoint(tmp_path / f"poor{n}", {"math": 0.1}, n) for n in range(4)]
    good = checkpoint(tmp_path / "good", {"math": 0.9}, 9)
    _, said, _ = select(capsys, *poor, good, "--json", "-")
    (row,) = json.loads(said)["selected"]
    assert (row["chosen"], row["bias"]) == (["good"], pytest.approx(0, abs=1e-12))


def test_the_paper_s_averages_are_named_for_its_six_benchmarks(tmp_path, capsys):
    names = ("aime24", "aime25", "math500", "livecodebench", "codeforces", "gpqa_diamond")
    two = [checkpoint(tmp_path / str(n), dict.fromkeys(names, 0.4), n) for n in range(2)]
    _, said, _ = select(capsys, *two, "--json", "-")
    rows = json.loads(said)["selected"]
    averages = {row["of"] for row in rows if row["rule"] == "best average"}
    assert averages == {"of six benchmarks", "of three domains"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "give the scores of two or more checkpoints"),
        (["a", "a"], "a: named twice"),
        (["a", "c"], "no suite that all of them have"),
        (["a", "few"], "samples per problem differ"),
        (["a", "b", "--confidence", 2], "--confidence 2"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    for name, suite, samples in (("a", "math", 4), ("b", "math", 4), ("c", "code", 4), ("few", "math", 2)):
        checkpoint(tmp_path / name, {suite: 0.5}, 1, samples)
    code, _, error = select(capsys, *words)
    assert (code, error.count("\n")) == (2, 1)
    assert said in error
