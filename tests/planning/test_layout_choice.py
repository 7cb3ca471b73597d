"""recipes/layouts are what the planner chooses, fit the GPUs they are for, and docs/costs.md agrees with them."""

from __future__ import annotations

import pytest

from megatron_prism.planning.gpu_profile import load_profile
from megatron_prism.planning.memory import training_memory
from megatron_prism.planning.search import RESERVE
from megatron_prism.study import costs
from megatron_prism.study.layout_choice import (
    Entry,
    as_mapping,
    choose,
    entries,
    file_text,
    published_recipes,
    search_entry,
    stage_of,
    with_layout,
)
from megatron_prism.study.layouts import LayoutTable

H100 = load_profile("h100")
# Quick ones: rows of 128k tokens, which few layouts take, and a dense model's and a hybrid's.
CHOSEN = [
    ("granite-3.3-8b", Entry("train", 8, 131072)),
    ("nemotron-h-8b", Entry("train", 144, 131072)),
    ("granite-4.0-h-micro", Entry("rl", 8, 16384)),
]


def in_file(model: str, entry: Entry) -> dict[str, object]:
    import yaml

    return yaml.safe_load(LayoutTable.load(model).path.read_text())[entry.kind][entry.gpus][entry.tokens]


@pytest.mark.parametrize(("model", "entry"), CHOSEN, ids=str)
def test_the_file_has_what_the_planner_chooses(model, entry):
    assert as_mapping(search_entry(model, entry).ranked[0]) == in_file(model, entry)


@pytest.mark.parametrize("model", published_recipes())
def test_every_layout_is_accepted_and_fits(model):
    """By the stage's own checks, with the paper's batches, and with 8 % of 80 GB to spare."""
    from megatron_prism.rl.memory import reinforcement_workload
    from megatron_prism.training.memory import train_workload

    table = LayoutTable.load(model)
    assert f"prism plan {model} --choose-layouts" in table.path.read_text()
    assert {("train", 8, 8192), ("train", 128, 8192), ("train", 144, 131072)} <= set(table.entries)
    for kind, gpus, tokens in table.entries:
        stage = with_layout(stage_of(model, Entry(kind, gpus, tokens)), table, kind, gpus)
        work = train_workload(stage) if kind == "train" else reinforcement_workload(stage)
        memory = training_memory(stage.architecture, stage.layout, work)
        assert memory.total <= H100.memory * (1 - RESERVE), (kind, gpus, tokens)
        assert stage.world_size == gpus


@pytest.mark.slow
@pytest.mark.parametrize("model", published_recipes())
def test_every_file_is_what_the_command_writes(model):
    assert LayoutTable.load(model).path.read_text() == file_text(model, *choose(model))


def test_every_length_and_number_of_gpus_is_in_the_list():
    assert len(list(entries())) == 17


def test_the_page_of_costs_agrees_for_one_model():
    text = costs.PAGE.read_text()
    for gpus, long_gpus in costs.SCALES:
        lines = list(costs.stage_lines("granite-4.0-h-micro", gpus, long_gpus))
        assert len(lines) == 7
        assert all(line in text for line in lines)


@pytest.mark.slow
def test_the_page_of_costs_agrees():
    assert costs.PAGE.read_text() == costs.page()
