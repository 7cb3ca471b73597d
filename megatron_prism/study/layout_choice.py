"""`recipes/layouts/MODEL.yaml`, written by the planner's search: the fastest layout that fits H100s of 80 GB.

    prism plan MODEL --choose-layouts

A test chooses some entries again and compares. The batches are the paper's: 128 rows, or 9 of 128k tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import yaml

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.pipeline.config import apply_overrides, to_mapping
from megatron_prism.planning.gpu_profile import load_profile
from megatron_prism.planning.search import Found, Ranked
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.planned import Lengths, search_reinforcement
from megatron_prism.rl.stage import Reinforce
from megatron_prism.study.layouts import RL, TRAIN, LayoutTable
from megatron_prism.study.model_recipe import ModelRecipe
from megatron_prism.study.registry import list_recipes, load_recipe
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.planned import search_train
from megatron_prism.training.stage import Train

LENGTHS = (8192, 16384, 32768, 131072)
LONGEST = LENGTHS[-1]
GPU = "h100"
T = TypeVar("T", Train, Reinforce)


@dataclass(frozen=True)
class Entry:
    """One line of a file."""

    kind: str
    gpus: int
    tokens: int


@cache
def published_recipes() -> Mapping[str, str]:
    """The Hugging Face name of its model for each recipe of a published model."""
    functions = {name: load_recipe(name).function for name in list_recipes()}
    return {name: made.model for name, made in functions.items() if isinstance(made, ModelRecipe)}


def entries() -> Iterator[Entry]:
    """8 and 128 GPUs at every length, and the paper's 144 for rows of 128k tokens; where 8 are too few, also 16."""
    for kind in (TRAIN, RL):
        for gpus in (8, 128):
            for tokens in LENGTHS:
                yield Entry(kind, gpus, tokens)
    yield Entry(TRAIN, 144, LONGEST)


def search_entry(model: str, entry: Entry) -> Found:
    """All layouts for an entry, the fastest first."""
    gpu, stage = load_profile(GPU), stage_of(model, entry)
    if isinstance(stage, Train):
        return search_train(stage, entry.gpus, gpu)
    return search_reinforcement(stage, entry.gpus, gpu, Lengths())


def stage_of(model: str, entry: Entry) -> Train | Reinforce:
    """The stage that a layout is chosen for, with the paper's batches."""
    architecture = _with_positions(
        architecture_from_config(published_config(published_recipes()[model])), entry.tokens
    )
    if entry.kind == TRAIN:
        batch = BatchConfig(entry.tokens, 1, 9 if entry.tokens == LONGEST else 128)
        return Train(architecture, "mcs", dtype="bf16", batch=batch)
    # The slots are those of study/reinforcement.py.
    return Reinforce(
        architecture, dtype="bf16", context_length=entry.tokens, max_new_tokens=entry.tokens, slots=16
    )


def with_layout(stage: T, table: LayoutTable, kind: str, gpus: int) -> T:
    """`stage` with the layout that the table has for its rows."""
    row = stage.batch.sequence_length if isinstance(stage, Train) else stage.context_length
    return apply_overrides(stage, table.find(kind, gpus, row).fields(kind))


def _with_positions(architecture: Architecture, tokens: int) -> Architecture:
    """As an extension of the context gives it."""
    return replace(architecture, max_position_embeddings=max(tokens, architecture.max_position_embeddings))


def choose(model: str) -> tuple[dict[str, Any], list[str]]:
    """The contents of a model's file, and a line for every entry of which nothing fits."""
    found: dict[str, Any] = {}
    missing = []
    waiting = list(entries())
    while waiting:
        entry = waiting.pop(0)
        result = search_entry(model, entry)
        if not result.ranked:
            least = "" if result.smallest is None else f"; the least is {result.smallest / 1e9:.0f} GB"
            missing.append(f"{entry.kind}, {entry.gpus} GPUs, {entry.tokens} tokens: no layout fits{least}")
            if entry.gpus == 8:
                waiting.append(replace(entry, gpus=16))
            continue
        found.setdefault(entry.kind, {}).setdefault(entry.gpus, {})[entry.tokens] = as_mapping(
            result.ranked[0]
        )
    return found, missing


def as_mapping(chosen: Ranked) -> dict[str, Any]:
    """An entry of the file: what differs from one GPU."""
    plain = to_mapping(ParallelConfig())
    option = chosen.option
    sizes = {key: value for key, value in to_mapping(option.parallel).items() if value != plain[key]}
    more = {"micro_batch_size": option.micro_batch_size} if option.micro_batch_size > 1 else {}
    return sizes | {"recompute": option.recompute} | more


def file_text(model: str, found: dict[str, Any], missing: list[str]) -> str:
    """The file, with a head that names the command."""
    lines = [
        f"# Layouts of {model}: the fastest that fit H100s of 80 GB with 8 % to spare, on paper (docs/planning.md).",
        f"# Written by `prism plan {model} --choose-layouts`; not by hand. kind of run: GPUs: tokens of a row.",
        *(f"# {line}" for line in missing),
    ]
    for kind, by_gpus in found.items():
        lines.append(f"{kind}:")
        for gpus, by_tokens in by_gpus.items():
            lines.append(f"  {gpus}:")
            for tokens, entry in by_tokens.items():
                text = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000).strip()
                lines.append(f"    {tokens}: {text}")
    return "\n".join(lines) + "\n"
