"""Stages that share one array of Slurm: which they are, their script, and what a node does for its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_submission import SLURM, executor, prism, sbatch
from two_stages import recipe

from megatron_prism.launching.array import run_member, with_arrays, write_array
from megatron_prism.launching.executor import Resources, load_executor
from megatron_prism.launching.job import main as run_job
from megatron_prism.launching.job_file import write_job
from megatron_prism.launching.placement import Placement
from megatron_prism.launching.record import SubmittedTask
from megatron_prism.launching.task import Task
from megatron_prism.launching.tasks import jobs_to_submit, tasks_of
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.node import locate
from megatron_prism.study.nemo_recipes import stage_script

__all__ = ["sbatch"]

RECIPE = str(Path(__file__).with_name("two_stages.py"))


def task(name: str, *after: str, array: int = 2, nodes: int = 1) -> Task:
    return Task(name, Path(f"/run/launch/{name}.json"), Placement(nodes, 1), Resources(array=array), after)


def test_only_stages_that_wait_for_the_same_and_need_the_same_share_an_array():
    tasks = [
        task("data"),
        task("a", "data"),
        task("score_a", "a"),
        task("b", "data"),
        task("big", "data", nodes=2),
        task("alone", "data", array=0),
        task("last", "b", "a", "alone"),
    ]
    made = with_arrays(tasks)
    assert [(each.name, each.after, [member.name for member in each.members]) for each in made] == [
        ("data", (), []),
        ("a-array", ("data",), ["a", "b"]),
        ("score_a", ("a-array",), []),
        ("big", ("data",), []),
        ("alone", ("data",), []),
        ("last", ("a-array", "alone"), []),
    ]
    # What a stage waits for stands before it, in every order in which the stages can come.
    for position, each in enumerate(made):
        assert set(each.after) <= {before.name for before in made[:position]}
    array = made[1]
    assert [SubmittedTask("", "", place=place).number_in("17") for place in (-1, 0, 1)] == [
        "17",
        "17_0",
        "17_1",
    ]
    assert SubmittedTask("", "", place=1).number_in("") == ""
    # Stages that wait for jobs of earlier submissions share one if these are the same, too.
    waiting = [replace(task(name), waits_for=(("data", "3"),)) for name in ("a", "b")]
    assert len(with_arrays([*waiting, task("c")])) == 2
    other = with_arrays([task("a"), replace(task("b"), file=Path("/run/launch/other.json"))])[0]
    assert other.file != array.file


def test_the_script_of_an_array(tmp_path, sbatch):
    file = executor(tmp_path, SLURM.partition("stages:")[0] + "array: 3\n")
    arguments = ("run", RECIPE, "--executor", file, "--run-dir", tmp_path / "run", "--dry-run")
    assert prism(*arguments, "--json", tmp_path / "dry.json") == 0
    scripts = json.loads((tmp_path / "dry.json").read_text())["scripts"]
    assert list(scripts) == ["one-array", "two"]
    lines = scripts["one-array"].splitlines()
    assert {"#SBATCH --array=0-1%3", "# Array task 0: stage one", "# Array task 1: stage three"} <= set(lines)
    output = next(line for line in lines if line.startswith("#SBATCH --output="))
    assert output.endswith("sbatch_two_stages.one-array_%A_%a.out")
    command = next(line for line in lines if line.startswith("srun"))
    assert "_${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_${SLURM_RESTART_COUNT:-0}.out" in command
    assert "-m megatron_prism.launching.array" in scripts["one-array"]
    assert "--array" not in scripts["two"]


@pytest.fixture
def array(tmp_path) -> Task:
    """`one`, which is stopped with its state saved, and `three`, as an array in a run folder."""
    run_dir = (tmp_path / "run").resolve()
    located = locate(recipe(first="stop").nodes.values(), run_dir)
    jobs = jobs_to_submit(located, run_dir, set())
    file = executor(tmp_path, SLURM.partition("stages:")[0] + "array: 3\n")
    made = with_arrays(tasks_of(jobs, located, run_dir, executor=load_executor(Path(file))))[0]
    (run_dir / "artifacts").mkdir(parents=True)
    for job in jobs.values():
        write_job(job, run_dir)
    write_array(made)
    return made


def test_a_stage_as_a_script_of_nemo_run(tmp_path):
    """Its command, run by hand, makes the stage."""
    script = stage_script(RECIPE, "three", run_dir=tmp_path / "run", overrides=["three.text=by hand"])
    assert (script.path, script.m, script.entrypoint) == ("megatron_prism.launching.job", True, "python")
    assert run_job(Path(script.args[0])) == 0
    made = next((tmp_path / "run/artifacts").glob("note-*"))
    assert Artifact.open(made).receipt.config["text"] == "by hand"


def test_a_node_runs_the_stage_of_its_place_and_leaves_word_for_its_own_script(array):
    launch = array.file.parent
    assert run_member(array.file, 1) == 0
    assert [path.name[:5] for path in (launch.parent / "artifacts").glob("*") if path.is_dir()] == ["note-"]
    made = next((launch.parent / "artifacts").glob("note-*"))
    assert Artifact.open(made).receipt.stage == "three"
    assert not list(launch.glob("*.again"))
    # As of an earlier attempt of another submission.
    (launch / f"{array.file.stem}.0.again").write_text("1\n")
    assert run_member(array.file, 0) == 75
    assert [path.name for path in launch.glob("*.again")] == [f"{array.file.stem}.0.again"]
    assert (launch / f"{array.file.stem}.0.again").read_text() == "75\n"
