"""The suites as data, and the numbers that the leaderboards make of tasks' scores."""

from __future__ import annotations

import math
import random
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from megatron_prism.errors import DataError
from megatron_prism.evaluation.harness.definitions import Benchmark, read_suite, suite_names
from megatron_prism.evaluation.harness.results import TaskResult
from megatron_prism.evaluation.harness.scores import benchmark_scores, suite_entry, task_entry
from megatron_prism.evaluation.harness.tasks import check_nltk

TASKS = Path(lm_eval.__file__).parent / "tasks"
# lm-eval's folders of the tasks of V1.
FIRST = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k")


def result(task, values, metric="acc_norm", **others):
    """A result whose aggregate is the mean over everything in `values`."""
    columns = {metric: values} | others
    flat = {
        name: [x for v in column for x in (v if isinstance(v, list) else [v])]
        for name, column in columns.items()
    }
    return TaskResult(
        task,
        [f"{name},none" for name in columns],
        {f"{name},none": sum(each) / len(each) for name, each in flat.items()},
        {f"{name},none": dict(zip(map(str, range(len(c))), c, strict=True)) for name, c in columns.items()},
        {},
    )


def shares(right, total):
    return [1.0] * right + [0.0] * (total - right)


def test_the_definitions_name_tasks_of_lm_eval_with_their_metrics_and_choices():
    manager = TaskManager(include_path=str(TASKS / "leaderboard"), include_defaults=False)
    second = read_suite("leaderboard-v2")
    # The group has these tasks and no others.
    group = manager.task_index
    leaves = set(manager.all_subtasks)
    named = {
        leaf
        for benchmark in second
        for name in benchmark.tasks
        for leaf in ([name] if name in leaves else _cfg(group[name].yaml_path)["task"])
    }
    assert named == leaves
    for benchmark in second:
        for name, choices in benchmark.tasks.items():
            listed = _cfg(group[name].yaml_path).get("doc_to_choice")
            if isinstance(listed, list):
                assert len(listed) == choices, name
    first = TaskManager(include_path=[str(TASKS / folder) for folder in FIRST], include_defaults=False)
    assert {name for benchmark in read_suite("leaderboard-v1") for name in benchmark.tasks} <= set(
        first.all_tasks
    )
    assert len([name for name in first.all_subtasks if name.startswith("mmlu_")]) == 57
    assert suite_names() == ["leaderboard-v1", "leaderboard-v2"]
    assert [b.num_fewshot for b in read_suite("leaderboard-v1")] == [25, 10, 5, 0, 5, 5]


def _cfg(path):
    from megatron_prism.evaluation.harness.tasks import _plain_yaml

    return _plain_yaml(Path(path))


def test_ifevals_data_of_nltk_is_named(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    [ifeval] = [each for each in read_suite("leaderboard-v2") if each.name == "IFEval"]
    with pytest.raises(DataError, match=r"IFEval: nltk's data 'punkt_tab' is missing.*NLTK_DATA"):
        check_nltk(ifeval)


def test_a_task_is_normalised_to_what_is_better_than_a_guess():
    benchmark = Benchmark("GPQA", {"g": 4}, ("acc_norm",))
    # The example of the leaderboard's documentation: 0.6 with four choices is 46.67.
    raw, score = benchmark_scores(benchmark, {"g": {"g": result("g", shares(60, 100))}})
    assert (raw, score.value) == (0.6, pytest.approx(0.4667, abs=1e-4))
    assert score.variance == pytest.approx(0.6 * 0.4 / 99 / 0.75**2)
    raw, score = benchmark_scores(benchmark, {"g": {"g": result("g", shares(20, 100))}})
    assert (raw, score.value) == (0.2, 0.0)


def test_the_mean_of_tasks_and_of_all_problems():
    results = {
        "a": {"a": result("a", shares(7, 10))},
        "b": {"b": result("b", shares(12, 30))},
        "c": {"c": result("c", shares(30, 50))},
    }
    tasks = {"a": 2, "b": 5, "c": 3}
    raw, score = benchmark_scores(Benchmark("MuSR", tasks, ("acc_norm",)), results)
    # The documentation's example: 0.4, 0.25 and 0.4 of what is above the guess.
    assert raw == pytest.approx((0.7 + 0.4 + 0.6) / 3)
    assert score.value == pytest.approx((0.4 + 0.25 + 0.4) / 3)
    raw, score = benchmark_scores(
        Benchmark("x", dict.fromkeys(tasks, 2), ("acc_norm",), mean_of="problems"), results
    )
    assert raw == pytest.approx(49 / 90)
    assert score.value == pytest.approx(2 * (49 / 90 - 0.5))


def test_ifeval_is_the_mean_of_prompts_and_instructions():
    # Llama-2-7b on the leaderboard: 0.18484 of the prompts and 0.31894 of the instructions gave 25.19.
    prompts = shares(100, 541)
    found = result("i", prompts, "prompt", inst=[[float(i < 266)] for i in range(834)])
    _, score = benchmark_scores(Benchmark("IFEval", {"i": 0}, ("prompt", "inst")), {"i": {"i": found}})
    assert 100 * score.value == pytest.approx(25.19, abs=0.005)


def test_intervals_cover_the_mean_of_independent_tasks():
    """A normalised average of three tasks and of instructions in groups, against draws from known chances."""
    draw, hits = random.Random(4), 0
    chances = {"a": (0.7, 2, 40), "b": (0.4, 5, 60)}
    benchmarks = [
        Benchmark("B", {name: choices for name, (_, choices, _) in chances.items()}, ("acc_norm",)),
        Benchmark("I", {"i": 0}, ("inst",)),
    ]
    true = ((0.7 - 0.5) / 0.5 + (0.4 - 0.2) / 0.8) / 2
    # Prompts of one and of three instructions have chances of 0.3 and 0.8: of all instructions 0.675 are right.
    true = (true + (0.3 + 3 * 0.8) / 4) / 2
    for _ in range(400):
        results = {
            name: {name: result(name, [float(draw.random() < chance) for _ in range(count)])}
            for name, (chance, _, count) in chances.items()
        }
        sizes = [draw.choice((1, 3)) for _ in range(50)]
        lists = [[float(draw.random() < (0.3 if size == 1 else 0.8)) for _ in range(size)] for size in sizes]
        results["i"] = {"i": result("i", lists, "inst")}
        entry = suite_entry(benchmarks, results, 0.95)
        hits += entry["low"] <= true <= entry["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_a_metric_between_0_and_1_has_an_interval_of_its_own_spread():
    values = [0.5 + 0.1 * math.sin(i) for i in range(50)]
    narrow = task_entry(result("t", values), result("t", values).rates(), 0.95)
    wide = task_entry(result("t", shares(25, 50)), result("t", shares(25, 50)).rates(), 0.95)
    assert narrow["high"] - narrow["low"] < 0.3 * (wide["high"] - wide["low"])


def test_what_is_no_rate_is_none():
    pairs = result("t", [[-1.5, 2.0], [-0.2, 1.0]], "word_perplexity")
    assert pairs.rates() is None
    assert result("t", [3.0, 0.5]).rates() is None
    # lm-eval's number is no mean, as for F1 over all documents.
    found = result("t", shares(5, 10))
    found.aggregated["acc_norm,none"] = 0.4
    assert found.rates() is None
    assert result("t", [[1.0, 0.0], [1.0]], "inst").rates() == {"0": 0.5, "1": 1.0}
