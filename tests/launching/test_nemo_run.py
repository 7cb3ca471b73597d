"""Recipes on nemo-run's own Python API and command line: the examples, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from megatron_prism.pipeline.artifact import Artifact

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPE = str(Path(__file__).with_name("two_stages.py"))


def example(name: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path]),
        "NEMORUN_HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_the_python_example_runs_stages_as_tasks_and_one_as_a_partial(tmp_path):
    (tmp_path / "local.yaml").write_text("kind: local\n")
    options = ("--stage", "two", "--executor", "local.yaml", "--run-dir", "run", "--set", "first=chosen")
    done = example("nemo_run_python.py", tmp_path, RECIPE, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Artifact.open(tmp_path / "run/one").receipt.config["text"] == "chosen"
    record = json.loads((tmp_path / "run/launch/submissions/0001.json").read_text())
    assert {name: task["state"] for name, task in record["tasks"].items()} == {"one": "done", "two": "done"}
    # The partial found both stages done.
    assert all(len(Artifact.open(tmp_path / "run" / name).receipt.attempts) == 1 for name in ("one", "two"))
    listed = [path.read_text() for path in tmp_path.glob("run/launch/nemo/**/listing/**/stdout.log")]
    listed += [path.read_text() for path in tmp_path.glob("home/**/listing/**/stdout.log")]
    assert any("receipt.json" in text for text in listed)


def test_nemo_runs_command_line_takes_overrides_and_fails_with_a_failed_task(tmp_path):
    (tmp_path / "local.yaml").write_text("kind: local\n")
    values = ("stage=two", "executor=local.yaml", "folder=run", "overrides=['first=refuse']")
    done = example("nemo_run_cli.py", tmp_path, f"recipe={RECIPE}", *values, "--yes")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stage 'one' failed: text=refuse: this text is refused; its log is " in done.stderr
    assert not list((tmp_path / "run/artifacts").glob("*/receipt.json"))
