"""What is read from `sinfo`, in the spellings of real clusters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.launching.executor import Resources
from megatron_prism.launching.partitions import check_partitions
from megatron_prism.launching.placement import Placement
from megatron_prism.launching.task import Task

NODES = """g1|128|gpu:h100:8(S:0-1)|mixed
g2|128|craynetwork:4,gpu:nvidia_a100-sxm4-80gb:4,gpu:1g.10gb:4|allocated
g3|128|gpu:8|down*
c1|64|(null)|idle~
"""


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\ncat <<'END'\n{NODES}END\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "sinfo"


def task(nodes: int, **more: object) -> Task:
    values = {"partition": "gpu", "gpus_per_node": 8, "cpus_per_process": 16} | more
    return Task("train", Path("train.json"), Placement(nodes, 8), Resources(**values))


def test_typed_gpus_are_counted_and_nodes_that_are_away_only_make_a_job_wait(sinfo, caplog):
    check_partitions([task(2)], "slurm.yaml")
    assert not caplog.records
    check_partitions([task(3)], "slurm.yaml")
    assert "1 node of partition gpu that fit it are away (g3 down)" in caplog.text
    with pytest.raises(
        ConfigError, match="partition gpu has 3 such nodes of 4, the largest with 128 cores and 8 GPUs"
    ):
        check_partitions([task(4)], "slurm.yaml")
    # Where a header does not ask for GPUs, nodes need none on Slurm's books.
    check_partitions([task(4, request_gpus=False, cpus_per_process=8)], "slurm.yaml")


@pytest.mark.parametrize("program", ["exit 1", "sleep 0", "echo slurm_load_node error >&2; exit 1"])
def test_without_an_answer_nothing_is_refused(sinfo, program):
    sinfo.write_text(f"#!/bin/sh\n{program}\n")
    check_partitions([task(400)], "slurm.yaml")
