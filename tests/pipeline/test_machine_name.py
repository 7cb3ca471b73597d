"""Processes of one machine find each other where the machine's own name has no address: containers, laptops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STAGES = Path(__file__).parents[1] / "launching" / "two_stages.py"
NAMED = "hostname has-no-address && exec "


@pytest.mark.skipif(os.getuid() != 0, reason="only root may rename a machine in a namespace")
def test_a_stage_on_two_processes_runs_on_a_machine_whose_name_does_not_resolve(tmp_path):
    command = f"{NAMED} {sys.executable} -m megatron_prism run {STAGES}:one ranks=2 --run-dir {tmp_path}"
    path = os.pathsep.join([str(STAGES.parents[2]), *sys.path])
    ended = subprocess.run(
        ["unshare", "--uts", "sh", "-c", command],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 processes" in ended.stdout + ended.stderr
