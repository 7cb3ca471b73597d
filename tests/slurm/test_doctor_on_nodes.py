"""`prism doctor`'s checks of a cluster, inside a job on two nodes: what they say is true there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from megatron_prism.platform.cluster_checks import munge_socket

CHECKS = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from megatron_prism.platform import cluster_checks, folder_checks
made = [*cluster_checks.slurm_checks(), cluster_checks._munge()]
found = {name: folder_checks.folder_checks(Path(name)) for name in sys.argv[1:]}
print(json.dumps({name: [asdict(check) for check in checks] for name, checks in {"": made, **found}.items()}))
"""


def test_what_the_doctor_says_in_a_job_is_true(cluster, tmp_path):
    """A folder that the nodes share although it is on no network, and one that each node has for itself."""
    (tmp_path / "checks.py").write_text(CHECKS)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    script = f"""#!/bin/sh
export PYTHONPATH={path}
srun -N1 -n1 {sys.executable} {tmp_path}/checks.py {tmp_path} {cluster.private} > {tmp_path}/said.json
"""
    number = cluster.submit(script, "-N2")
    cluster.wait_for_state(number, "COMPLETED")
    said = json.loads((tmp_path / "said.json").read_text())
    found = {name: {check["name"]: check for check in checks} for name, checks in said.items()}
    assert found[""]["munge"]["found"], found[""]["munge"]
    assert found[""]["Slurm partitions"]["found"]
    assert "batch* (2 " in found[""]["Slurm partitions"]["detail"]
    ours = found[str(tmp_path)]
    for name in (
        "shared folder",
        "run folder on all nodes",
        "flock",
        "flock between nodes",
        "clocks of the nodes",
    ):
        assert ours[name]["found"], ours[name]
    assert ours["shared folder"]["detail"].startswith("seen by 2 nodes")
    private = found[str(cluster.private)]
    for name in ("shared folder", "run folder on all nodes", "flock between nodes"):
        assert not private[name]["found"], private[name]
    assert private["shared folder"]["detail"].startswith("not seen by n2")


def test_the_socket_of_munge_in_slurms_configuration():
    text = "AuthAltParameters       = (null)\nAuthInfo                = cred_expire=60,socket=/run/other/munge\nX = 1\n"
    assert munge_socket(text) == "/run/other/munge"
    assert munge_socket("AuthInfo                = (null)\n") == ""
