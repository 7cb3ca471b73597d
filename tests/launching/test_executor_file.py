"""Executor files: what is read, what each stage gets, and the one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.launching.executor import KEYS, REQUIRED, Resources, load_executor
from megatron_prism.launching.placement import Placement, place
from megatron_prism.launching.rendezvous import FIRST_PORT, PORTS, rendezvous
from megatron_prism.platform.source_tree import recipes_folder

SLURM = "kind: slurm\naccount: lab\npartition: batch\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "executor.yaml"
    file.write_text(text)
    return file


def test_a_stage_by_name_wins_over_its_kind_and_the_defaults(tmp_path):
    text = """gpus_per_node: 8
env: {A: "1", B: "1"}
stages:
  corpus: {partition: cpu, gpus_per_node: 0, env: {B: "2"}}
  web: {time: "00:10:00"}
"""
    executor = load_executor(written(tmp_path, SLURM + text))
    training = executor.resources("midtrain", "train")
    assert (training.partition, training.gpus_per_node, training.env) == ("batch", 8, {"A": "1", "B": "1"})
    data = executor.resources("web", "corpus")
    assert (data.partition, data.gpus_per_node, data.time) == ("cpu", 0, "00:10:00")
    assert data.env == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("account: lab\n", "kind is missing"),
        ("kind: slrum\n", "did you mean 'slurm'"),
        (SLURM + "acount: x\n", "did you mean 'account'"),
        (SLURM + "container_imag: x\n", "did you mean 'container_image'"),
        (
            SLURM + "stages: {train: {tine: 1}}\n",
            "stages.train.tine: kind: slurm has no such key; did you mean 'time'",
        ),
        ("kind: local\naccount: lab\n", "account: kind: local has no such key"),
        (SLURM + "packaging: gti\n", "did you mean 'git'"),
        (SLURM + "shared_run_dir: 3\n", "shared_run_dir=3 must be true or false"),
        (SLURM + "stages: [train]\n", "stages must be a mapping"),
        ("- kind\n", "expected KEY: VALUE"),
    ],
)
def test_a_mistake_in_the_file(tmp_path, text, words):
    with pytest.raises(ConfigError, match=r"executor\.yaml") as problem:
        load_executor(written(tmp_path, text))
    assert words in str(problem.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: slurm\npartition: batch\n", "account is not set"),
        ("kind: slurm\naccount: lab\n", "partition is not set"),
        ("kind: slurm\naccount: <your account>\npartition: batch\n", "account is not set"),
        (
            SLURM + "container_image: <image>\n",
            "container_image is not set for stage 'midtrain': replace <image>",
        ),
        # PyYAML makes seconds of it, which Slurm would take for 60 days of minutes.
        (SLURM + "time: 24:00:00\n", "time=86400 for stage 'midtrain': YAML reads 24:00:00 as a number"),
        (SLURM + "gpus_per_node: eight\n", "gpus_per_node"),
        (SLURM + "gpus_per_node: -1\n", "gpus_per_node=-1"),
        (SLURM + "env: [A]\n", "env=['A'] for stage 'midtrain' must be a mapping"),
        (SLURM + "additional_parameters: reservation\n", "additional_parameters='reservation' for stage"),
        (SLURM + "env: {'A-B': '1'}\n", "env.A-B: not the name"),
    ],
)
def test_a_value_that_a_stage_cannot_use(tmp_path, text, words):
    executor = load_executor(written(tmp_path, text))
    with pytest.raises(ConfigError, match=r"executor\.yaml") as problem:
        executor.resources("midtrain", "train")
    assert words in str(problem.value)


def test_a_misspelt_stage(tmp_path):
    executor = load_executor(written(tmp_path, SLURM + "stages: {trian: {}, packed: {}}\n"))
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        executor.check_stages(["train", "midtrain"])


@pytest.mark.parametrize(
    "file", sorted((recipes_folder() / "executors").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_files_of_the_project_say_what_to_fill_in(file):
    """Each is read without a mistake; what only the user knows is asked for."""
    executor = load_executor(file)
    if not REQUIRED[executor.kind]:
        executor.resources("midtrain", "train")
        return
    with pytest.raises(ConfigError, match="is not set"):
        executor.resources("midtrain", "train")


def test_every_kind_has_only_keys_of_the_dataclass():
    for keys in KEYS.values():
        assert keys <= set(Resources.__dataclass_fields__)


def test_whole_nodes():
    eight = Resources(gpus_per_node=8)
    assert place("a", 6, eight) == Placement(1, 6)
    assert place("a", 16, eight) == Placement(2, 8)
    assert place("a", 3, Resources(processes_per_node=4)) == Placement(1, 3)
    with pytest.raises(ParallelError, match=r"12 processes .* gpus_per_node=8"):
        place("a", 12, eight)
    with pytest.raises(ParallelError, match="do not fit one machine with gpus_per_node=8"):
        place("a", 16, eight, single_node=True)


def test_jobs_of_a_machine_meet_at_different_ports_below_those_of_outgoing_connections():
    def port(job: int) -> int:
        return rendezvous({"SLURM_JOB_ID": str(job), "SLURM_NODEID": "1", "SLURM_NNODES": "2"}).port

    assert len({port(job) for job in range(100_000, 100_500)}) == 500
    assert FIRST_PORT >= 1024
    assert FIRST_PORT + PORTS <= 32_768


def test_nodes_of_other_managers():
    sky = rendezvous({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"})
    assert (sky.nodes, sky.rank, sky.host) == (2, 1, "10.0.0.1")
    pods = rendezvous(
        {"PET_NODE_RANK": "0", "PET_NNODES": "3", "PET_MASTER_ADDR": "a-0", "PET_MASTER_PORT": "29400"}
    )
    assert (pods.nodes, pods.rank, pods.host, pods.port) == (3, 0, "a-0", 29400)
    # Inside a job's batch script, but not started by srun: a single node.
    assert rendezvous({"SLURM_JOB_ID": "7"}).nodes == 1
