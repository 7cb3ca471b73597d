"""Layouts by kind of run, GPUs and length of a row: files, lookup, and how a stage's layout follows its rows."""

from __future__ import annotations

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.models.families import FAMILIES
from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.platform.source_tree import recipes_folder
from megatron_prism.study.layouts import RL, TRAIN, Layout, LayoutTable, layout_follows
from megatron_prism.study.small_models import DENSE
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.stage import Train

SHORT, LONG = ParallelConfig(data_parallel_size=2), ParallelConfig(context_parallel_size=2)


@pytest.fixture
def table(tmp_path):
    return LayoutTable(
        tmp_path / "m.yaml",
        {(TRAIN, 2, 256): Layout(SHORT, "none", 4), (TRAIN, 2, 1024): Layout(LONG, "full")},
    )


@pytest.fixture
def graph(table):
    graph = Graph("toy")
    train = Train(architecture=DENSE, mixture="shoebox-mcs", batch=BatchConfig(256, 1, 8))
    graph.add("train", train, None, layout_follows(table, TRAIN, 2))
    return graph


def layout(graph):
    stage = graph.node("train").stage
    return stage.parallel, stage.recompute, stage.batch.micro_batch_size


def test_the_layout_follows_the_length_of_a_row(graph):
    assert layout(graph) == (SHORT, "none", 4)
    graph.override({"train.batch.sequence_length": 1024})
    assert layout(graph) == (LONG, "full", 1)
    # A shorter row takes the layout of the next longer entry.
    graph.override({"train.batch": {"sequence_length": 512}})
    assert layout(graph) == (LONG, "full", 1)
    graph.override({"train.batch": {"sequence_length": 128}, "train.batch.sequence_length": 64})
    assert layout(graph) == (SHORT, "none", 4)


def test_an_explicit_size_wins(graph):
    graph.override({"train.batch.sequence_length": 1024, "train.parallel.context_parallel_size": 4})
    assert layout(graph) == (ParallelConfig(context_parallel_size=4), "full", 1)
    graph.override({"train.recompute": "none"})
    assert layout(graph)[1] == "none"


def test_a_missing_entry_names_the_file_and_the_nearest(graph, table):
    with pytest.raises(
        ConfigError,
        match=r"stage 'train': .*m\.yaml: no layout of kind 'train' for 2 GPUs and rows of 2048 tokens; nearest: "
        r"2 GPUs and 1024 tokens",
    ):
        graph.override({"train.batch.sequence_length": 2048})
    with pytest.raises(
        ConfigError, match="for 4 GPUs and rows of 256 tokens; nearest: 2 GPUs and 256 tokens"
    ):
        table.find(TRAIN, 4, 256)
    with pytest.raises(ConfigError, match="nearest: none of this kind"):
        table.find(RL, 2, 256)


@pytest.mark.parametrize("wrong", [0, -1, "long"])
def test_the_stage_itself_refuses_a_length_that_is_none(graph, wrong):
    with pytest.raises(ConfigError, match="sequence_length"):
        graph.override({"train.batch.sequence_length": wrong})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrain: {8: {}}", "unknown kind of run 'pretrain'; known: train, rl"),
        ("train: 8", "train: expected NUMBER: ... lines"),
        ("train: {eight: {}}", "train: 'eight' must be a whole number"),
        ("train: {8: {8192: 2}}", r"train\.8\.8192: expected sizes"),
        ("train: {8: {8192: {tensor_parallel: 8}}}", "unknown key 'tensor_parallel'"),
        ("train: {8: {8192: {data_parallel_size: 4}}}", "the product of the sizes is 4, not 8"),
        ("train: {1: {8192: {recompute: some}}}", "recompute='some' is not possible"),
        ("train: {1: {8192: {micro_batch_size: 0}}}", "micro_batch_size=0"),
        ("[", "not readable YAML"),
    ],
)
def test_a_damaged_file_is_one_line(text, message, tmp_path, monkeypatch):
    (tmp_path / "layouts").mkdir()
    (tmp_path / "layouts" / "m.yaml").write_text(text)
    monkeypatch.setattr("megatron_prism.study.layouts.recipes_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match=message):
        LayoutTable.load("m")


def test_every_model_has_layouts_for_a_node_and_a_cluster():
    files = sorted((recipes_folder() / "layouts").glob("*.yaml"))
    assert len(files) == sum(len(family.published) for family in FAMILIES.values())
    for file in files:
        table = LayoutTable.load(file.stem)
        for gpus in (8, 128):
            for tokens in (8192, 16384, 32768):
                assert table.find(TRAIN, gpus, tokens).parallel.world_size == gpus
            assert table.find(RL, gpus, 16384).parallel.world_size == gpus
        assert table.find(TRAIN, 144, 131_072).parallel.world_size == 144
