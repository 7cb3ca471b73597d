"""Runs for the page of the paper's forms: one that looks like a study of Granite-3.3 (8B), and analyses of weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from many_models import score

from megatron_prism.analysis.change import Change, change
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.streaming import Piece
from megatron_prism.analysis.weight_summary import summarize
from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.pipeline.artifact import Artifact, Receipt, write_json
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.report.records import Run, StageRecord

RECIPE = "granite-3.3-8b"
GRANITE = to_mapping(architecture_from_config(published_config("ibm-granite/granite-3.3-8b-base")))
TRAIN = {"architecture": GRANITE, "mixture": "mcs", "steps": 25_000, "batch": {"sequence_length": 8192}}
SUITES = ("aime24", "aime25", "math500", "livecodebench", "codeforces", "gpqa_diamond")
STAGES = {
    "import": ("import", {}, {}),
    "midtrain": ("train", {"init": "import"}, TRAIN),
    "merge": (
        "merge",
        {"base": "import", "midtrain": "midtrain"},
        {"method": "linear", "weights": {"base": 0.15, "midtrain": 0.85}},
    ),
    "extend": ("train", {"init": "merge"}, {**TRAIN, "trainable": "all"}),
    "extend_attention": ("train", {"init": "merge"}, {**TRAIN, "trainable": "attention"}),
    "mix": ("prompts", {}, {"mix": "unbalanced", "domains": ["math", "code"]}),
    "rl_midtrain": ("rl", {"model": "midtrain", "prompts": "mix"}, {"architecture": GRANITE}),
    "rl_import": ("rl", {"model": "import", "prompts": "mix"}, {"architecture": GRANITE}),
}
MODELS = ("import", "midtrain", "merge", "extend", "extend_attention", "rl_midtrain", "rl_import")
LENGTHS = (8192, 16384, 32768, 65536, 131072)
# Right answers of 100 of every suite, by model, and retrievals of 200.
RIGHT = {
    "import": 4,
    "midtrain": 40,
    "merge": 30,
    "extend": 35,
    "extend_attention": 36,
    "rl_midtrain": 50,
    "rl_import": 9,
}


PARTS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down"), "norm": ("norm",)}


def granite_run(folder: Path, **changes: dict) -> Run:
    """The run; `changes` are by stage what its config has in place of the above."""
    stages = [
        record(folder, name, kind, inputs, config | changes.get(name, {}))
        for name, (kind, inputs, config) in STAGES.items()
    ]
    for model in MODELS:
        metrics = {"suites": {suite: score(RIGHT[model], 100) for suite in SUITES}}
        stages.append(record(folder, f"evaluate_{model}", "evaluation", {"model": model}, {}, metrics))
        if not model.startswith("rl"):
            metrics = {"suites": {f"ruler-{length}": score(RIGHT[model], 200) for length in LENGTHS}}
            stages.append(record(folder, f"ruler_{model}", "ruler", {"model": model}, {}, metrics))
    return Run(stages, RECIPE)


def record(
    folder: Path, name: str, kind: str, inputs: dict, config: dict, metrics: dict | None = None
) -> StageRecord:
    receipt = Receipt(
        kind=kind,
        fingerprint=f"print-{name}",
        stage=name,
        config=config,
        inputs={key: f"print-{parent}" for key, parent in inputs.items()},
        metrics=metrics or {},
        versions={"commit": "abc1234"},
    )
    return StageRecord(name, kind, "done", dict(inputs), config, Artifact(folder, receipt))


def with_weights(run: Run, folder: Path, base: str, others: dict[str, float]) -> Run:
    """The run with a stage that analysed weights; `others` moved by so much, relative to the base."""
    write_json(folder / "weights.json", weights_of(base, others).document)
    inputs = {name: name for name in (base, *others)}
    stage = record(folder, f"weights_{base}", "analysis_weights", inputs, {})
    return dataclasses.replace(run, stages=[*run.stages, stage])


def weights_of(base: str, others: dict[str, float]) -> Analysis:
    """`analyze weights` of two layers of a few numbers: every element moves alike, except that norms stay."""
    return Analysis(
        "weights",
        summary={},
        values={
            "base": {"model": base, "folder": base, "stored_as": "float32"},
            "family": "granite",
            "thresholds": [0.001, 0.005, 0.01, 0.02, 0.05, 0.1],
            "main_threshold": 0.01,
            "absolute_threshold": 1e-5,
            "models": [
                {"model": name, "folder": name, "stored_as": "float32", **summarize(pieces(moved))}
                for name, moved in others.items()
            ],
        },
    )


def pieces(moved: float) -> list[tuple[Piece, Change]]:
    found = []
    for layer in range(2):
        for component, parts in (
            ("attention", ("q", "k", "v", "o")),
            ("mlp", ("gate", "up", "down")),
            ("norm", ("norm",)),
        ):
            old = torch.linspace(1, 2, 8)
            new = old if component == "norm" else old * (1 + moved)
            name = f"model.layers.{layer}.{component}"
            found += [
                (Piece(name, layer, component, part, 8 * place, (8,)), change(old, new))
                for place, part in enumerate(parts)
            ]
    return found
