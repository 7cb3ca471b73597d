"""A complete short run in a new interpreter: what it prints, and what it imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from heavy_modules import STACKS, TRANSFORMERS

RECIPE = """
from dataclasses import replace

from megatron_prism.conversion.stage import ExportHF
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.pipeline.graph import Graph
from megatron_prism.study.small_models import MODELS
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.stage import Train

NARROW = {"vocab_size": 265, "hidden_size": 32, "ffn_hidden_size": 48, "head_dim": 8}
NARROW |= {"mamba_head_dim": 8, "mamba_state_dim": 8}


def recipe(jobs: int = 1) -> Graph:
    graph = Graph("whole", jobs=jobs)
    corpus = graph.add("corpus", FileCorpus(sources={"text": "texts.jsonl"}, valid_percent=5))
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=265), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    training = Train(
        architecture=replace(MODELS["hybrid"], **NARROW), mixture="all.yaml", steps=3, batch=BatchConfig(64, 2, 2),
        checkpoint_every=2,
    )
    trained = graph.add("train", training, tokens=tokens, tokenizer=tokenizer)
    needles = RulerEvaluate(tasks=["needle_single"], lengths=[96], samples=2)
    graph.add("sample", needles, model=trained, tokenizer=tokenizer)
    graph.add("export", ExportHF(), model=trained, tokenizer=tokenizer)
    return graph
"""
PROGRAM = """
import json, sys
from megatron_prism.cli.main import main

for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print(json.dumps([end.code, sorted(sys.modules)]))
"""
# A line about a stage, or a log line of a stage, which starts with the time if that differs from the line before.
OURS = re.compile(
    r"\[\d/\d\] \w+: (start|done|skipped)|(\[\d\d:\d\d:\d\d\]| {10}) (step \d|\d+ tokens: recall)"
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "whole.py").write_text(RECIPE)
    (tmp_path / "all.yaml").write_text("name: all\nweights:\n  text: 1\n")
    lines = [{"text": f"Line {n}: {n % 7} sheep jump over {n % 5} fences."} for n in range(400)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(here: Path, *commands: str) -> tuple[list[tuple[int, set[str]]], list[str]]:
    """Exit code and imported modules after each command, and the lines of stderr of all commands."""
    arguments = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments], cwd=here, capture_output=True, text=True, check=True
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[0, [")]
    assert len(said) == len(commands), done.stdout + done.stderr
    return [(code, set(modules)) for code, modules in said], done.stderr.splitlines()


def test_every_line_is_our_own_and_only_the_export_asks_transformers(here: Path) -> None:
    ((_, sampled), (_, exported)), lines = run(here, "run whole.py:sample", "run whole.py:export")
    assert not [line for line in lines if not OURS.match(line)]
    assert any("step 3/3" in line for line in lines)
    assert "megatron.core.optimizer" in sampled
    assert not (STACKS | TRANSFORMERS) & sampled
    # The tokenizer's behaviour is checked with the library that will read the export.
    assert "transformers" in exported
    assert not STACKS & exported


def test_who_only_hands_out_stages_loads_no_torch(here: Path) -> None:
    ((_, loaded),), _ = run(here, "run whole.py:tokenizer jobs=2")
    assert (here / "runs/whole/tokenizer/receipt.json").is_file()
    assert not {"torch", "megatron.core", "transformers"} & loaded
