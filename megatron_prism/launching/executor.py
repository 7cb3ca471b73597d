"""The executor file: where the stages of a recipe run, as YAML.

Its keys are the defaults of all stages; `stages:` changes them for a kind of stage or for one stage by its name, and
the name wins. docs/launching.md has the keys with examples.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.launching.slurm_time import check_time
from megatron_prism.pipeline.config import from_mapping, not_negative, one_of, positive
from megatron_prism.pipeline.yaml_file import load_yaml

KINDS = ("local", "slurm", "docker", "skypilot", "kubeflow")
PACKAGING = ("none", "git", "include_untracked")
STAGES = "stages"


@dataclass
class Resources:
    """What one stage gets. A key that a kind of executor does not have is refused when it is set.

    Attributes:
        gpus_per_node: GPUs of a node; a stage of several processes runs one on each. 0: the stage uses no GPU, and
            `processes_per_node` counts.
        processes_per_node: of a stage without GPUs.
        cpus_per_process: cores of a process; its threads are as many.
        python: the interpreter on the node.
        env: variables of the stage's processes.
        setup: lines of shell that run before the stage, on every node's batch host.
        account, partition, qos, constraint, comment, mem, time: of Slurm's job.
        warn_seconds: Slurm sends SIGUSR1 this long before the time limit or a pre-emption that allows it, so that
            training saves its state; 0 for no signal.
        requeue: a job that was pre-empted, lost a node, or reached its time limit and saved goes back into the queue.
        restarts: how often a job whose processes crashed is put back into the queue.
        exclusive: whole nodes.
        array: stages with equal resources that wait for the same jobs become one array, of which this many run at a
            time; 0 for a job each.
        request_gpus: whether `--gpus-per-node` is in the job's header; clusters whose partitions hand out whole nodes
            may refuse it.
        container_image, container_mounts: of pyxis on Slurm, of Docker, of Kubernetes.
        srun_args: further arguments of srun.
        additional_parameters: further lines of the job's header, for example {reservation: prism}.
        gpus: name of the accelerator (SkyPilot), for example H100.
        cloud, region, cluster_name, use_spot, idle_minutes_to_autostop, storage_mounts: of SkyPilot.
        namespace, runtime_ref, volumes, volume_mounts: of Kubeflow.
        shm_size, network, runtime: of Docker.
    """

    gpus_per_node: int = 0
    processes_per_node: int = 1
    cpus_per_process: int = 1
    python: str = ""
    env: dict[str, str] = field(default_factory=dict)
    setup: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    comment: str = ""
    mem: str = ""
    time: str = "04:00:00"
    warn_seconds: int = 300
    requeue: bool = True
    restarts: int = 0
    exclusive: bool = False
    array: int = 0
    request_gpus: bool = True
    container_image: str = ""
    container_mounts: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    gpus: str = ""
    cloud: str = ""
    region: str = ""
    cluster_name: str = ""
    use_spot: bool = False
    idle_minutes_to_autostop: int = 10
    storage_mounts: dict[str, Any] = field(default_factory=dict)
    namespace: str = "default"
    runtime_ref: str = "torch-distributed"
    volumes: list[Any] = field(default_factory=list)
    volume_mounts: list[Any] = field(default_factory=list)
    shm_size: str = ""
    network: str = ""
    runtime: str = ""

    def __post_init__(self) -> None:
        positive(self, "processes_per_node", "cpus_per_process")
        not_negative(self, "gpus_per_node", "warn_seconds", "restarts", "array", "idle_minutes_to_autostop")
        for key in self.env:
            if not key.isidentifier():
                raise ConfigError(f"env.{key}: not the name of an environment variable")

    @property
    def slots(self) -> int:
        """How many processes a node has room for."""
        return self.gpus_per_node or self.processes_per_node


COMMON = {"gpus_per_node", "processes_per_node", "cpus_per_process", "python", "env"}
SLURM = {
    *(
        "setup",
        "account",
        "partition",
        "qos",
        "constraint",
        "comment",
        "mem",
        "time",
        "warn_seconds",
        "requeue",
    ),
    *("restarts", "exclusive", "array", "request_gpus", "container_image", "container_mounts", "srun_args"),
    "additional_parameters",
}
KEYS = {
    "local": COMMON,
    "slurm": COMMON | SLURM,
    "docker": COMMON | {"container_image", "container_mounts", "shm_size", "network", "runtime"},
    "skypilot": COMMON
    | {"container_image", "gpus", "cloud", "region", "cluster_name", "use_spot", "idle_minutes_to_autostop"}
    | {"storage_mounts", "setup"},
    "kubeflow": COMMON | {"container_image", "namespace", "runtime_ref", "volumes", "volume_mounts"},
}
REQUIRED = {
    "local": (),
    "slurm": ("account", "partition"),
    "docker": ("container_image",),
    "skypilot": ("cluster_name",),
    "kubeflow": ("container_image",),
}


@dataclass(frozen=True)
class Executor:
    """An executor file.

    Attributes:
        file: where it was read from, for messages.
        kind: one of `KINDS`.
        packaging: 'none': the nodes run the code that is installed there; 'git': a copy of the last commit, and a
            changed or untracked file is refused; 'include_untracked': a copy of the working tree.
        shared_run_dir: states that all nodes see the run folder although its file system is not one of the network.
        values: keys of `Resources`, of all stages.
        stages: those of a kind of stage, or of one stage.
    """

    file: str
    kind: str
    packaging: str
    shared_run_dir: bool
    values: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]

    def resources(self, stage: str, kind: str) -> Resources:
        """What the stage called `stage`, of this kind, gets.

        Raises:
            ConfigError: if a value is missing or impossible; names the file and the key.
        """
        merged: dict[str, Any] = {}
        for values in (self.values, self.stages.get(kind, {}), self.stages.get(stage, {})):
            for key, value in values.items():
                both_mappings = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
                merged[key] = {**merged[key], **value} if both_mappings else value
        self._check_values(merged, stage)
        found = from_mapping(Resources, merged, where=f"{self.file}, stage '{stage}'")
        for key in REQUIRED[self.kind]:
            if not str(getattr(found, key)).strip():
                raise ConfigError(
                    f"{self.file}: {key} is not set, which kind: {self.kind} needs; write {key}: NAME at the top "
                    f"level, or under stages: {stage}"
                )
        if self.kind == "slurm":
            try:
                check_time(found.time, found.warn_seconds)
            except ConfigError as problem:
                raise ConfigError(f"{self.file}, stage '{stage}': {problem}") from None
        return found

    def _check_values(self, values: Mapping[str, Any], stage: str) -> None:
        """Refuse what a template left open, what is no mapping, and a time that YAML has read as a number."""
        for key, value in values.items():
            if isinstance(getattr(Resources(), key), dict) and not isinstance(value, Mapping):
                raise ConfigError(
                    f"{self.file}: {key}={value!r} for stage '{stage}' must be a mapping, for example "
                    f"{key}: {{NAME: value}}"
                )
            if isinstance(value, str) and value.strip().startswith("<"):
                raise ConfigError(
                    f"{self.file}: {key} is not set for stage '{stage}': replace {value} by a value of your own"
                )
        if not isinstance(time := values.get("time", ""), str):
            raise ConfigError(
                f"{self.file}: time={time} for stage '{stage}': YAML reads 24:00:00 as a number of seconds, and Slurm "
                'would take it for minutes; write it in quotes, for example time: "24:00:00"'
            )

    def check_stages(self, known: Iterable[str]) -> None:
        """Raise a ConfigError for an entry of `stages` that looks like a misspelt stage or kind of stage of the recipe.

        Other entries are for other recipes: one file serves all of them.
        """
        names = set(known)
        for name in self.stages:
            if name not in names and difflib.get_close_matches(name, names, n=1, cutoff=0.8):
                raise ConfigError(
                    f"{self.file}: stages.{name}: no such stage or kind of stage{suggest(name, names)}"
                )


def load_executor(path: Path) -> Executor:
    """Read an executor file.

    Raises:
        ConfigError: for a missing file, an unknown kind or key (the nearest is suggested), or a wrong type.
    """
    data = dict(load_yaml(path))
    where = str(path)
    kind = data.pop("kind", None)
    if not isinstance(kind, str):
        raise ConfigError(f"{where}: kind is missing; write kind: with one of {', '.join(KINDS)}")
    packaging = str(data.pop("packaging", "none"))
    try:
        one_of(kind, KINDS, "kind")
        one_of(packaging, PACKAGING, "packaging")
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from None
    shared = data.pop("shared_run_dir", False)
    if not isinstance(shared, bool):
        raise ConfigError(f"{where}: shared_run_dir={shared!r} must be true or false")
    stages = data.pop(STAGES, None) or {}
    if not isinstance(stages, dict):
        raise ConfigError(f"{where}: stages must be a mapping of stages to their keys")
    _check_keys(where, kind, data)
    for name, values in stages.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: stages.{name} must be a mapping, for example {{time: '01:00:00'}}")
        _check_keys(where, kind, values, f"stages.{name}.")
    return Executor(
        where, kind, packaging, shared, data, {str(name): dict(values) for name, values in stages.items()}
    )


def _check_keys(where: str, kind: str, values: Mapping[str, Any], prefix: str = "") -> None:
    top = () if prefix else ("kind", "packaging", "shared_run_dir", STAGES)
    for key in values:
        if key not in KEYS[kind]:
            raise ConfigError(
                f"{where}: {prefix}{key}: kind: {kind} has no such key{suggest(str(key), [*KEYS[kind], *top])}"
            )
