"""One Slurm cluster for all tests of this folder, made when the first of them runs."""

from __future__ import annotations

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="session")
def running_cluster():
    problem = missing()
    if problem:
        pytest.skip(f"no Slurm: {problem}")
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(running_cluster):
    """The cluster, with both nodes and without jobs."""
    yield running_cluster
    running_cluster.run("scancel", "--user=root")
    for node in running_cluster.nodes:
        running_cluster.repair(node)
    running_cluster.wait_for(lambda: not running_cluster.run("squeue", "-h"), about="an empty queue")
