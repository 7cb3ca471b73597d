"""Both leaderboards with lm-eval's own definitions, prompts and metrics, over made-up documents in place of the hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import datasets
import lm_eval
import nltk
import pyarrow.parquet
import pytest
import yaml
from stage_runs import run

from megatron_prism.evaluation.harness import language_model
from megatron_prism.evaluation.harness.definitions import read_suite
from megatron_prism.evaluation.harness.stage import Harness

LETTERS = ["A", "B", "C", "D"]
TASKS = Path(lm_eval.__file__).parent / "tasks" / "leaderboard" / "bbh_mc"


def bbh(name):
    """BBH's answers are among the choices of the task's definition."""
    choices = yaml.safe_load((TASKS / f"{name}.yaml").read_text())["doc_to_choice"]
    return lambda n: {"input": f"Which is {n}?", "target": choices[n % len(choices)]}


def documents(path, name):
    """A function from a number to a document of this dataset, in the columns of the one on the hub."""
    if path == "SaylorTwift/bbh":
        return bbh(name)
    made = {
        "allenai/ai2_arc": lambda n: {
            "question": f"What is {n} + 1?",
            "choices": {"text": ["two", "three", "four", "five"], "label": LETTERS},
            "answerKey": LETTERS[n % 4],
        },
        "Rowan/hellaswag": lambda n: {
            "ctx_a": f"A man lifts {n} boxes.",
            "ctx_b": "he",
            "activity_label": "Work",
            "endings": [f"{word} them down." for word in ("puts", "sets", "throws", "drops")],
            "label": str(n % 4),
        },
        "cais/mmlu": lambda n: {"question": f"What is {n}?", "choices": LETTERS, "answer": n % 4},
        "truthfulqa/truthful_qa": lambda n: {
            "question": f"Is {n} a number?",
            "mc1_targets": {"choices": ["Yes", "No"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["Yes.", "It is.", "No."], "labels": [1, 1, 0]},
        },
        "allenai/winogrande": lambda n: {
            "sentence": f"The {n} cats saw the dogs because the _ were near.",
            "option1": "cats",
            "option2": "dogs",
            "answer": "1",
        },
        "openai/gsm8k": lambda n: {
            "question": f"What is {n} + 1?",
            "answer": f"It is {n + 1}.\n#### {n + 1}",
        },
        "wis-k/instruction-following-eval": lambda n: {
            "key": n,
            "prompt": "Write without a comma, and in lowercase.",
            "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"][: 1 + n % 2],
            "kwargs": [{}, {}][: 1 + n % 2],
        },
        "DigitalLearningGmbH/MATH-lighteval": lambda n: {
            "problem": f"What is {n} + 1?",
            "solution": f"It is $\\boxed{{{n + 1}}}$.",
            "level": "Level 5",
        },
        "Idavidrein/gpqa": lambda n: {
            "Question": f"Which is {n}?",
            "Correct Answer": f"{n}",
            **{f"Incorrect Answer {i}": f"{n + i}" for i in (1, 2, 3)},
        },
        "TAUR-Lab/MuSR": lambda n: {
            "narrative": f"There are {n} rooms.",
            "question": "Where?",
            "choices": "['here', 'there']",
            "answer_choice": "here",
        },
        "TIGER-Lab/MMLU-Pro": lambda n: {
            "question": f"What is {n}?",
            "options": [str(i) for i in range(10)],
            "answer": "ABCDEFGHIJ"[n % 10],
        },
    }
    return made[path]


SPLITS = ("train", "validation", "test", "dev", "murder_mysteries", "object_placements", "team_allocation")


def from_the_hub(path, name=None, **_):
    make = documents(path, name)
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list([make(number) for number in range(30)]) for split in SPLITS}
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_both_leaderboards(model, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    monkeypatch.setattr(nltk.data, "find", lambda resource: resource)
    logging.disable(logging.WARNING)
    try:
        # The model reads 200 tokens, and IFEval writes up to 1,280.
        honest = language_model.sampling

        def short(*given):
            params = honest(*given)
            params.max_new_tokens = min(params.max_new_tokens, 8)
            return params

        monkeypatch.setattr(language_model, "sampling", short)
        made = run(Harness(limit=4), {"model": model.artifact}, tmp_path)
    finally:
        logging.disable(logging.NOTSET)
    scores = json.loads((made.path / "scores.json").read_text())
    for suite, average in scores["averages"].items():
        entries = average["benchmarks"]
        assert list(entries) == [benchmark.name for benchmark in read_suite(suite)]
        assert average["score"] == pytest.approx(sum(e["score"] for e in entries.values()) / len(entries))
        assert average["low"] <= average["score"] <= average["high"]
    assert scores["measures"] == {}
    # 57 subjects of MMLU and five more tasks; 24 of BBH, 7 of MATH, 3 each of GPQA and MuSR, IFEval and MMLU-Pro.
    assert len(scores["suites"]) == 62 + 39
    shots = {task: entry["num_fewshot"] for task, entry in scores["suites"].items()}
    assert (shots["arc_challenge"], shots["hellaswag"], shots["mmlu_anatomy"], shots["gsm8k"]) == (
        25,
        10,
        5,
        5,
    )
    assert (shots["leaderboard_bbh_navigate"], shots["leaderboard_math_algebra_hard"]) == (3, 4)
    assert (shots["leaderboard_mmlu_pro"], shots["leaderboard_ifeval"]) == (5, 0)
    table = pyarrow.parquet.read_table(made.path / "harness.parquet", columns=["task", "filter"])
    # GSM8K has two filters.
    assert table.num_rows == 4 * (len(scores["suites"]) + 1)
