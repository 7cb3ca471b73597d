"""Tasks of lm-eval over the shoebox's problems: choices of several tokens and of one, generation, and whole texts."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from megatron_prism.data.shoebox.problem import HELD_OUT, different_problems
from megatron_prism.data.shoebox.problems_math import FAMILIES as MATH
from megatron_prism.data.shoebox.problems_science import FAMILIES as SCIENCE

OPTIONS, LETTERS, ANSWERS, TEXTS = "shoebox_options", "shoebox_letters", "shoebox_math", "shoebox_texts"
CHOICE = {
    "output_type": "multiple_choice",
    "fewshot_split": "train",
    "doc_to_target": "gold",
    "metadata": {"version": 2.0},
}
TASKS: dict[str, dict[str, Any]] = {
    # The choice follows the context without a space, and some contexts end with one.
    OPTIONS: {
        **CHOICE,
        "doc_to_text": "{{question}}\nAnswer: ",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "num_fewshot": 3,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    LETTERS: {
        **CHOICE,
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "metric_list": [{"metric": "acc"}],
    },
    ANSWERS: {
        "output_type": "generate_until",
        "fewshot_split": "train",
        "doc_to_text": "{{question}}\n",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 1,
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    TEXTS: {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}
# Of the models; some texts are longer.
POSITIONS = 200
COUNTS = {"test": 8, "train": 4}


def documents() -> dict[str, list[dict[str, Any]]]:
    """Task -> its documents, those of the prompts' examples last."""
    total = sum(COUNTS.values())
    science = different_problems(SCIENCE, HELD_OUT, total, random.Random(1), suite="science")
    choices = [
        {
            "question": problem.question,
            "choices": re.findall(r"\([A-D]\) (\S+)", problem.question),
            "gold": "ABCD".index(problem.answer),
        }
        for problem in science
    ]
    mathematics = different_problems(MATH, HELD_OUT, total, random.Random(1), suite="math")
    answers = [{"question": problem.question, "answer": problem.answer} for problem in mathematics]
    # One text is longer than the model's context, and one much longer.
    texts = [{"text": problem.document * times} for problem, times in zip(science, (1, 2, 7), strict=False)]
    return {OPTIONS: choices, LETTERS: choices, ANSWERS: answers, TEXTS: texts}


def write_tasks(folder: Path) -> Path:
    """A folder of definitions for `include_path`."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, found in documents().items():
        splits = {"test": found} if task == TEXTS else {"test": found[:8], "train": found[8:]}
        files = {}
        for split, chosen in splits.items():
            path = folder / f"{task}-{split}.jsonl"
            path.write_text("".join(json.dumps(each) + "\n" for each in chosen))
            files[split] = str(path)
        dataset = {
            "dataset_path": "json",
            # `datasets` keeps its copy beside the files, and not in the user's cache.
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            "test_split": "test",
        }
        # JSON is YAML.
        (folder / f"{task}.yaml").write_text(json.dumps({"task": task} | dataset | TASKS[task]))
    return folder
