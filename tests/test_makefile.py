"""The environment that `make` builds has bytecode, whatever the caller's environment variables are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_bytecode_is_written_for_what_a_run_loads_though_the_environment_forbids_it(tmp_path):
    for name in (
        "torch/nn.py",
        "torch/testing/x.py",
        "sympy/tests/test_x.py",
        "transformers/models/llama.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "template.py").write_text("no python {{ at all }}\n")
    rule = 'probe: ; @$(COMPILE) . || : ; echo "<$$PYTHONDONTWRITEBYTECODE>"'
    done = subprocess.run(
        [
            "make",
            "-s",
            "-f",
            ROOT / "Makefile",
            f"BIN={Path(sys.executable).parent}",
            f"--eval={rule}",
            "probe",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("<>", "")
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.pyc")}
    assert written == {"torch"}
    assert len(list(tmp_path.rglob("*.pyc"))) == 1
