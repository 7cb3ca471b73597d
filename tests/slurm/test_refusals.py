"""What a real Slurm would never run is said before the first job is sent; what only has to wait is not refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.launching.executor import Resources
from megatron_prism.launching.partitions import check_partitions
from megatron_prism.launching.placement import Placement
from megatron_prism.launching.slurm import refusal, without_overrides
from megatron_prism.launching.task import Task

GOOD = {"account": "lab", "partition": "batch", "time": "00:20:00", "nodes": 2, "gpus-per-node": 4}


def script(**more: object) -> str:
    options = GOOD | {key.replace("_", "-"): value for key, value in more.items()}
    return "\n".join(["#!/bin/sh", *(f"#SBATCH --{key}={value}" for key, value in options.items()), ""])


@pytest.fixture
def here(cluster, monkeypatch):
    """The cluster, which the commands of this process reach, too."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def test_sbatch_is_asked_about_every_kind_of_job(here, monkeypatch):
    assert refusal(script()) == ""
    for more, words in {
        ("account", "nobody"): "Invalid account",
        ("partition", "bach"): "invalid partition specified: bach; Invalid partition name specified",
        ("constraint", "h100"): "Invalid feature specification",
        ("time", "2-0"): "time limit is invalid",
        ("nodes", 3): "Node count specification invalid",
        ("reservation", "none"): "reservation is invalid",
        ("colour", "red"): "unrecognized option '--colour=red'",
    }.items():
        said = refusal(script(**dict([more])))
        assert words in said
        assert "\n" not in said
    # A variable of the user would win over the header.
    monkeypatch.setenv("SBATCH_PARTITION", "bach")
    assert "bach" in refusal(script())
    with without_overrides():
        assert refusal(script()) == ""
    assert "bach" in refusal(script())


def test_nodes_that_are_too_few_or_too_small_are_told_from_nodes_that_are_away(here, caplog):
    good = Task("train", Path("train.json"), Placement(2, 4), Resources(partition="batch", gpus_per_node=4))
    check_partitions([good], "slurm.yaml")
    assert not caplog.records
    changes = [
        (
            {"resources": Resources(partition="bach")},
            "partition=bach: Slurm has no such partition; did you mean 'batch'",
        ),
        (
            {"resources": Resources(partition="batch", gpus_per_node=8)},
            "2 nodes with 4 cores and 8 GPUs each, and partition batch has 0 such nodes of 2, the largest with 4 cores",
        ),
        ({"placement": Placement(4, 4)}, "asks for 4 nodes"),
        ({"resources": Resources(partition="batch", cpus_per_process=2)}, "with 8 cores"),
    ]
    for change, words in changes:
        task = replace(good, **change)
        with pytest.raises(ConfigError, match=r"slurm\.yaml") as problem:
            check_partitions([task], "slurm.yaml")
        assert words in str(problem.value)
    here.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    try:
        check_partitions([good], "slurm.yaml")
        assert "1 node of partition batch that fit it are away (n2 drained)" in caplog.text
        assert refusal(script()) == "", "sbatch takes the job, which waits"
        assert here.job(here.submit("#!/bin/sh\n", "-N2"))["JobState"] == "PENDING"
    finally:
        here.run("scontrol", "update", "nodename=n2", "state=resume")
