"""Two models on the same problems: false alarms, power, correction, and what `prism eval compare` says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from megatron_prism.cli.main import main
from megatron_prism.evaluation.comparison import (
    KEPT,
    LOST,
    UNDECIDED,
    compare,
    group_changes,
    retention,
)
from megatron_prism.evaluation.scored_model import ScoredModel
from megatron_prism.evaluation.scores import PROBLEMS, SCORES
from megatron_prism.evaluation.statistics.paired import holm, paired_test


def means(generator: np.random.Generator, difficulty: np.ndarray, samples: int) -> np.ndarray:
    return generator.binomial(samples, difficulty) / samples


@pytest.mark.parametrize(("problems", "samples"), [(30, 64), (500, 64), (279, 3), (453, 3), (198, 3)])
def test_models_that_are_equally_good_are_called_different_as_often_as_promised(problems, samples):
    """Half of the problems are as hard for both; the others are hard for one and easy for the other, as it happens."""
    generator = np.random.default_rng(3)
    false_alarms = []
    for _ in range(1500):
        shared, first, second = generator.beta(0.35, 0.35, size=(3, problems))
        same = generator.random(problems) < 0.5
        pair = (means(generator, np.where(same, shared, own), samples) for own in (first, second))
        false_alarms.append(paired_test(*pair).p_value < 0.05)
    # 4 to 6 %, and two standard errors of the simulation.
    assert 0.04 - 0.011 <= np.mean(false_alarms) <= 0.06 + 0.011


def test_the_test_is_student_s_and_its_interval_belongs_to_it():
    generator = np.random.default_rng(4)
    before, after = generator.random((2, 40))
    made = paired_test(before, after)
    theirs = stats.ttest_rel(after, before)
    assert made.p_value == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (made.low, made.high) == pytest.approx((low, high))
    assert made.change == pytest.approx((after - before).mean())


def test_what_it_calls_detectable_is_detected_four_times_in_five():
    generator = np.random.default_rng(5)
    noise = generator.normal(0, 0.2, size=(2000, 100))
    detectable = np.mean([paired_test(np.full(100, 0.5), 0.5 + row).detectable for row in noise])
    found = [paired_test(np.full(100, 0.5), 0.5 + detectable + row).p_value < 0.05 for row in noise]
    assert 0.77 <= np.mean(found) <= 0.83


def test_pairs_are_sharper_than_two_rates_of_the_same_problems():
    generator = np.random.default_rng(6)
    difficulty = generator.beta(0.35, 0.35, 200)
    before, after = means(generator, difficulty, 8), means(generator, np.clip(difficulty + 0.05, 0, 1), 8)
    assert paired_test(before, after).p_value < 0.01
    assert stats.ttest_ind(before, after).pvalue > 0.05


def test_equal_answers_are_not_certainty():
    made = paired_test(np.zeros(50), np.zeros(50))
    assert (made.change, made.p_value) == (0.0, 1.0)
    assert made.high == pytest.approx(1 - 0.05 ** (1 / 50))
    assert retention(made.low, made.high, 0.02) == UNDECIDED
    many = paired_test(np.ones(500), np.ones(500))
    assert retention(many.low, many.high, 0.02) == KEPT


def test_holm_s_example():
    # Holm 1979: sorted p-values times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.01, 0.02, KEPT),
        (-0.019, -0.001, KEPT),
        (-0.05, -0.03, LOST),
        (-0.03, -0.001, LOST),
        (-0.03, 0.01, UNDECIDED),
    ],
)
def test_kept_lost_undecided(low, high, verdict):
    assert retention(low, high, 0.02) == verdict


def evaluation(folder: Path, rows: dict[str, dict[str, list[bool]]], group: str = "domain") -> Path:
    folder.mkdir(parents=True)
    counted = {
        suite: {problem: (sum(correct), len(correct)) for problem, correct in problems.items()}
        for suite, problems in rows.items()
    }
    (folder / PROBLEMS).write_text(json.dumps(counted))
    scores = {suite: {"pass_rate": 0.5, "low": 0.4, "high": 0.6, "group": group} for suite in rows}
    (folder / SCORES).write_text(json.dumps({"suites": scores}))
    return folder


def answers(rate: float, seed: int) -> dict[str, list[bool]]:
    generator = np.random.default_rng(seed)
    return {f"p{number}": (generator.random(4) < rate).tolist() for number in range(100)}


def prism(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_command_compares_by_problem_and_corrects_all_comparisons(tmp_path, capsys):
    base = evaluation(tmp_path / "base", {"math": answers(0.5, 1), "code": answers(0.5, 2)})
    better = {"code": answers(0.5, 8), "math": answers(0.9, 3) | {"more": [True] * 4}}
    other = evaluation(tmp_path / "other", better)
    assert prism("eval", "compare", base, other, "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["suite"]: row for row in said["comparisons"]}
    assert rows["math"]["verdict"] == KEPT
    assert rows["math"]["only_in_one"] == 1
    assert rows["math"]["test"]["low"] > 0.3
    assert rows["math"]["corrected"] == pytest.approx(2 * rows["math"]["test"]["p_value"])
    assert rows["code"]["verdict"] == UNDECIDED
    # The order of the problems in a file does not matter.
    assert rows["code"]["test"]["problems"] == 100
    assert prism("eval", "compare", base, other, "--margin", 30) == 0
    assert "undecided" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base"], "give two or more evaluations"),
        (["base", "base"], "base: named twice"),
        (["base", "nowhere"], "nowhere"),
        (["base", "science"], "no suite of"),
        (["base", "fewer"], "samples per problem differ"),
        (["base", "strangers"], "it shares 0 problems"),
        (["base", "science", "--margin", "-1"], "--margin -1: must be between 0 and 100 points"),
        (["base", "science", "--confidence", "95"], "--confidence 95: must be between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    evaluation(Path("base"), {"math": answers(0.5, 1)})
    evaluation(Path("science"), {"science": answers(0.5, 1)})
    evaluation(Path("fewer"), {"math": {name: row[:2] for name, row in answers(0.5, 1).items()}})
    evaluation(Path("strangers"), {"math": {f"x{name}": row for name, row in answers(0.5, 1).items()}})
    assert prism("eval", "compare", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_loss_among_many_suites_must_survive_the_correction(tmp_path):
    """15 of 100 problems are lost and 4 gained: p = 0.011, too little for one of twenty suites."""
    before = {f"p{n}": (float(n < 60), 1) for n in range(100)}
    after = before | {f"p{n}": (0.0, 1) for n in range(15)} | {f"p{n}": (1.0, 1) for n in range(60, 64)}
    # As many problems are lost as gained.
    noise = before | {f"p{n}": (0.0, 1) for n in range(5)} | {f"p{n}": (1.0, 1) for n in range(60, 65)}

    def verdict(others: int) -> str:
        names = [f"noise{n}" for n in range(others)]
        groups = dict.fromkeys(["suite", *names], "general")
        base = ScoredModel((), {"suite": before} | dict.fromkeys(names, before), groups, {})
        other = ScoredModel((), {"suite": after} | dict.fromkeys(names, noise), groups, {})
        return compare({"base": base, "other": other}, margin=0.02)[0].verdict

    assert verdict(0) == LOST
    assert verdict(19) == UNDECIDED


def test_a_model_against_itself_is_kept_where_the_suite_is_large_enough(tmp_path):
    base = evaluation(tmp_path / "base", {"math": answers(0.5, 1)})
    same = evaluation(tmp_path / "same", {"math": answers(0.5, 1)})
    models = {"base": ScoredModel.read(base), "same": ScoredModel.read(same)}
    (found,) = compare(models, margin=0.05)
    assert (found.verdict, found.test.p_value) == (KEPT, 1.0)


def run_folder(folder: Path, scored: dict[str, tuple[str, str]]) -> None:
    """A run whose stage NAME is of kind and scores the model (kind, model)."""
    stages = [
        {"name": name, "kind": kind, "folder": f"artifacts/{name}", "inputs": {"model": model}}
        for name, (kind, model) in scored.items()
    ]
    (folder / "graph.json").write_text(json.dumps({"recipe": "r", "stages": stages}))


@pytest.fixture
def run(tmp_path):
    """Two models, each with a suite of the domain, two general ones and one of long contexts."""
    folder = tmp_path / "run"
    for seed, model in enumerate(("base", "mid")):
        better = 0.3 if model == "mid" else 0.0
        evaluation(folder / "artifacts" / f"evaluate_{model}", {"math": answers(0.4 + better, 10 + seed)})
        general = {"arc": answers(0.5, 20 + seed), "mmlu": answers(0.5, 30 + seed)}
        evaluation(folder / "artifacts" / f"harness_{model}", general, "general")
        evaluation(
            folder / "artifacts" / f"ruler_{model}", {"ruler-512": answers(0.9 - 2 * better, seed)}, "long"
        )
    run_folder(
        folder,
        {
            f"{kind}_{model}": ("evaluation" if kind == "evaluate" else kind, model)
            for model in ("base", "mid")
            for kind in ("evaluate", "ruler", "harness")
        }
        | {"harness_unfinished": ("harness", "mid")},
    )
    return folder


def test_the_scores_of_a_model_in_a_run_give_a_retention_report(run, capsys):
    assert prism("eval", "compare", f"{run}:base", f"{run}:mid", "--margin", 12, "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    groups = {row["group"]: row for row in said["groups"]}
    assert {name: row["verdict"] for name, row in groups.items()} == {
        "domain": KEPT,
        "general": KEPT,
        "long": LOST,
    }
    assert groups["domain"]["low"] > 0.2
    assert (groups["general"]["suites"], groups["general"]["model"]) == (2, "mid")
    tests = {row["suite"]: row["test"] for row in said["comparisons"]}
    mean = (tests["arc"]["change"] + tests["mmlu"]["change"]) / 2
    assert groups["general"]["change"] == pytest.approx(mean)
    assert prism("eval", "compare", f"{run}:base", f"{run}:mid", "--margin", 0) == 0
    out = capsys.readouterr().out
    assert "retention: mean change" in out
    assert "undecided" in out


def test_the_interval_of_a_group_covers_its_true_change():
    generator = np.random.default_rng(8)
    true = np.array([0.05, -0.02, 0.0])
    covered, narrow = [], []
    for _ in range(600):
        models = {}
        difficulty = {name: generator.beta(0.7, 0.7, 120) for name in "abc"}
        for model in ("base", "other"):
            problems = {}
            for suite, change in zip("abc", true, strict=True):
                shift = change if model == "other" else 0.0
                chance = np.clip(0.1 + 0.8 * difficulty[suite] + shift, 0, 1)
                right = generator.binomial(4, chance)
                problems[suite] = {f"p{n}": (float(count), 4) for n, count in enumerate(right)}
            models[model] = ScoredModel((), problems, dict.fromkeys("abc", "domain"), {})
        made = compare(models)
        (group,) = group_changes(made)
        covered.append(group.low <= true.mean() <= group.high)
        single = made[0].test
        narrow.append(single.low <= true.mean() <= single.high)
    assert 0.93 <= np.mean(covered) <= 0.98
    assert np.mean(narrow) < 0.9, "the interval of one suite is no interval of the mean"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{run}", "scores 2 models; name one: {run}:base, {run}:mid"),
        ("{run}:bse", "scores no model 'bse'; did you mean 'base'"),
        ("{run}/artifacts", "neither an evaluation"),
    ],
)
def test_a_name_that_is_no_scored_model_is_one_line(run, capsys, name, said):
    assert prism("eval", "compare", f"{run}:mid", name.format(run=run)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(run=run) in line


def test_a_run_folder_of_one_model_needs_no_name(run, capsys):
    run_folder(run, {"evaluate_mid": ("evaluation", "model"), "ruler_mid": ("ruler", "model")})
    assert prism("eval", "compare", run / "artifacts" / "evaluate_base", run) == 0
    assert "math" in capsys.readouterr().out
    run_folder(run, {"evaluate_unfinished": ("evaluation", "model")})
    assert prism("eval", "compare", run / "artifacts" / "evaluate_base", run) == 2
    assert "no evaluation of this run is complete" in capsys.readouterr().err
