"""Jobs on this machine through nemo-run, and the scripts that Slurm would get."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prism.cli import main as cli
from megatron_prism.launching import checks, record
from megatron_prism.pipeline.artifact import Artifact

RECIPE = str(Path(__file__).with_name("two_stages.py"))
SLURM = """kind: slurm
account: lab
partition: batch
gpus_per_node: 2
cpus_per_process: 3
shared_run_dir: true
env: {NOTE: "a b's $$ $HOME % # ü\\n/opt/nemo_run"}
stages:
  three: {partition: cpu, gpus_per_node: 0, requeue: false, time: "00:10:00"}
"""


def executor(folder: Path, text: str = "kind: local\nprocesses_per_node: 2\nenv: {NOTE: 'a b'}\n") -> str:
    file = folder / "executor.yaml"
    file.write_text(text)
    return str(file)


def prism(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Programs of a Slurm that gives no answer: scripts are made without it, but its absence is refused."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "sinfo", "srun"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_failing_task_fails_the_run_and_only_its_dependants_are_left_out(tmp_path, capsys, monkeypatch):
    run_dir, file = tmp_path / "run", executor(tmp_path)
    arguments = ("run", RECIPE, "--executor", file, "--run-dir", run_dir)
    assert prism(*arguments, "first=refuse") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: stage 'one' failed: text=refuse: this text is refused; its log is ")
    assert Path(error.rpartition(" ")[2]).is_file()
    made = {
        path.name.rpartition("-")[0]
        for path in (run_dir / "artifacts").iterdir()
        if path.suffix != ".partial"
    }
    assert made == {"note"}
    record = json.loads((run_dir / "launch/submissions/0001.json").read_text())
    assert {name: task["state"] for name, task in record["tasks"].items()} == {
        "one": "failed",
        "two": "not started",
        "three": "done",
    }

    # A second submission has only what is missing, on two processes.
    assert prism(*arguments, "ranks=2", "--json", tmp_path / "result.json") == 0
    assert set(json.loads((tmp_path / "result.json").read_text())["jobs"]) == {"one", "two"}
    receipt = Artifact.open(run_dir / "one").receipt
    assert (receipt.metrics, receipt.world_size) == ({"world_size": 2, "variable": "a b"}, 2)
    assert Artifact.open(run_dir / "two").receipt.inputs == {"one": receipt.fingerprint}
    assert prism("logs", "one", "--run-dir", run_dir) == 0
    assert "stage 'one': done in" in capsys.readouterr().out
    # Without --run-dir, the folder in runs/ with the last submission.
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/notes").symlink_to(run_dir)
    monkeypatch.chdir(tmp_path)
    assert prism("jobs", "--json", tmp_path / "jobs.json") == 0
    assert {row["stage"]: row["state"] for row in json.loads((tmp_path / "jobs.json").read_text())} == {
        "one": "done",
        "two": "done",
        "three": "done",
    }
    assert prism("logs", "oen", "--run-dir", run_dir) == 2
    assert "did you mean 'one'" in capsys.readouterr().err


def test_the_dry_run_shows_the_command_that_runs_and_writes_nothing(tmp_path):
    """The command of the dry run, executed by hand once the job files exist, is the live run."""
    run_dir, file = tmp_path / "run", executor(tmp_path)
    arguments = ("run", f"{RECIPE}:one", "--executor", file, "--run-dir", run_dir)
    assert prism(*arguments, "--dry-run", "--json", tmp_path / "dry.json") == 0
    assert not run_dir.exists()
    shown = json.loads((tmp_path / "dry.json").read_text())["scripts"]
    assert list(shown) == ["one"]
    assert prism(*arguments) == 0
    live = next(run_dir.glob("launch/nemo/experiments/**/one_config.yaml")).read_text()
    command = shlex.split(shown["one"])
    assert command[:2] == [sys.executable, "-m"]
    assert all(word in live for word in command[2:])
    shutil.rmtree(run_dir / "artifacts")
    (run_dir / "artifacts").mkdir()
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0
    assert len(list((run_dir / "artifacts").glob("note-*/receipt.json"))) == 1


def test_the_script_for_slurm(tmp_path, sbatch):
    run_dir = tmp_path / "run"
    file = executor(tmp_path, SLURM)
    arguments = ("run", RECIPE, "ranks=4", "--executor", file, "--run-dir", run_dir, "--dry-run")
    assert prism(*arguments, "--json", tmp_path / "dry.json") == 0
    assert not run_dir.exists()
    scripts = json.loads((tmp_path / "dry.json").read_text())["scripts"]
    header = {line for line in scripts["one"].splitlines() if line.startswith("#SBATCH")}
    assert header == {
        "#SBATCH --account=lab",
        "#SBATCH --partition=batch",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --job-name=two_stages.one",
        "#SBATCH --time=04:00:00",
        "#SBATCH --signal=USR1@300",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --kill-on-invalid-dep=yes",
        f"#SBATCH --output={run_dir}/launch/nemo/experiments/two_stages/two_stages_0001/one/"
        "sbatch_two_stages.one_%j.out",
    }
    assert f"-m megatron_prism.launching.job {run_dir}/launch/one-" in scripts["one"]
    # The first node seals the artifact when the others have ended, however long that takes.
    assert re.findall(r"--wait=\d+", scripts["one"]) == ["--wait=60", "--wait=0"]
    variables = dict(
        line.removeprefix("export ").split("=", 1)
        for line in scripts["one"].splitlines()
        if line.startswith("export ")
    )
    assert variables["SRUN_CPUS_PER_TASK"] == "6"
    assert variables["OMP_NUM_THREADS"] == "3"
    assert "#SBATCH --partition=cpu" in scripts["three"]
    assert "#SBATCH --time=00:10:00" in scripts["three"]
    assert "#SBATCH --no-requeue" in scripts["three"]
    assert "gpus-per-node" not in scripts["three"]
    assert "scontrol requeue" not in scripts["three"].partition("# Command 1")[0]
    for script in scripts.values():
        text = script.partition("#----------------\n#!")[2]
        subprocess.run(["bash", "-n"], input=f"#!{text}", text=True, check=True)
    # The lines of the variables as a shell reads them.
    exported = scripts["one"].partition("export NOTE=")[2].partition("\nexport")[0]
    read = subprocess.run(
        ["bash", "-c", f'export NOTE={exported}\nprintf %s "$NOTE"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout == "a b's $$ $HOME % # ü\n/opt/nemo_run"


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (SLURM.replace("shared_run_dir: true", "shared_run_dir: false"), ["ranks=4"], "shared_run_dir: true"),
        (SLURM, ["ranks=3"], "3 processes cannot be shared evenly by nodes with gpus_per_node=2"),
        (SLURM.replace("account: lab\n", ""), [], "account is not set"),
        (SLURM.replace("NOTE", "note"), [], "env.note: nemo-run writes names in capitals"),
        (SLURM + "python: /opt/pypy3\n", [], "only with a program that has 'python' in its path"),
        (SLURM + "setup: . /opt/nemo_run/env\n", [], "setup: nemo-run replaces /nemo_run in its scripts"),
        (SLURM + 'comment: "a\\nb"\n', [], "comment='a\\nb': a line break ends the header"),
        (
            SLURM + "additional_parameters: {output: x}\n",
            [],
            "additional_parameters.output: this option follows",
        ),
        (SLURM + "additional_parameters: {job-name: x}\n", [], "additional_parameters.job-name: this option"),
        (
            SLURM + "additional_parameters: {gres: null}\n",
            [],
            "additional_parameters.gres=None: give it a value",
        ),
        (SLURM + "container_image: image\n", [], "srun has no --container-image here"),
        (SLURM + 'time: "00:06:00"\n', [], "time=00:06:00 ends 360 s after the start"),
        ("kind: local\n", ["ranks=2"], "2 processes do not fit one machine"),
        ("kind: local\n", ["--detach"], "only slurm can go on alone"),
        (
            "kind: local\nstages: {other: {}, thre: {}}\n",
            [],
            "stages.thre: no such stage or kind of stage; did you mean 'three'",
        ),
    ],
)
def test_what_would_fail_in_the_queue_is_refused(
    tmp_path, sbatch, monkeypatch, capsys, text, arguments, words
):
    monkeypatch.setattr(checks, "file_system", lambda path: "ext4")
    run_dir = tmp_path / "run"
    assert prism("run", RECIPE, *arguments, "--executor", executor(tmp_path, text), "--run-dir", run_dir) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not run_dir.exists()


def test_refused_folders_and_machines(tmp_path, monkeypatch, capsys, sbatch):
    file = executor(tmp_path, SLURM)
    assert prism("run", RECIPE, "--executor", file, "--run-dir", tmp_path / "a run") == 2
    assert "cannot hold a path with blanks" in capsys.readouterr().err
    assert prism("run", RECIPE, "--executor", file, "--run-dir", tmp_path / "nemo_run") == 2
    assert "nemo-run replaces /nemo_run" in capsys.readouterr().err
    odd = tmp_path / "two stages.py"
    odd.write_bytes(Path(RECIPE).read_bytes())
    assert prism("run", odd, "--executor", file, "--run-dir", tmp_path / "run") == 2
    assert "recipe 'two stages': the names of jobs" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert prism("run", RECIPE, "--executor", file, "--run-dir", tmp_path / "run") == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err
    assert prism("run", RECIPE, "--detach", "--run-dir", tmp_path / "run") == 2
    assert prism("run", RECIPE, "--executor", tmp_path / "none.yaml", "--run-dir", tmp_path / "run") == 2
    monkeypatch.chdir(tmp_path)
    assert prism("jobs") == 2
    assert "name the run folder with --run-dir" in capsys.readouterr().err
    assert prism("jobs", "--run-dir", tmp_path / "run") == 2
    assert "nothing was submitted from this folder" in capsys.readouterr().err


def test_a_damaged_artifact_is_said_before_submission(tmp_path, capsys):
    run_dir, file = tmp_path / "run", executor(tmp_path)
    assert prism("run", f"{RECIPE}:one", "--run-dir", run_dir) == 0
    next((run_dir / "artifacts").glob("note-*/note.txt")).unlink()
    capsys.readouterr()
    assert prism("run", RECIPE, "--executor", file, "--run-dir", run_dir) == 2
    assert "stage 'one' is done, but its artifact is damaged" in capsys.readouterr().err


def test_two_submissions_at_the_same_moment_have_two_numbers(tmp_path, monkeypatch):
    one, two = (record.Submission(0, "notes", "slurm", "executor.yaml", "now") for _ in range(2))
    one.claim_number(tmp_path)
    # The second looked before the first had written.
    seen = iter([1, 2])
    monkeypatch.setattr(record, "next_number", lambda run_dir: next(seen))
    two.claim_number(tmp_path)
    assert [each.number for each in record.read_submissions(tmp_path)] == [1, 2]


def test_what_waits_for_a_stage_also_waits_for_what_that_waits_for():
    tasks = {
        name: record.SubmittedTask("", "", after) for name, after in {"d": ["c"], "c": ["a"], "b": []}.items()
    }
    assert record.with_dependants(["a"], tasks) == {"a", "c", "d"}
