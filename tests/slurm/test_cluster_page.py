"""docs/cluster.md: whoever types what the page says arrives at a submitted job. A tiny model stands for the 8B."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from configuration import ACCOUNT, GPUS, PARTITION
from tiny_models import make_tokenizer

from megatron_prism.data.mixture import Mixture
from megatron_prism.models.families import architecture_from_config, hf_shapes, published_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text()
BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
# What a reader fills into the executor file, and the sizes of the test cluster's nodes.
EXECUTOR = {
    "<account>": ACCOUNT,
    "<partition of the GPU nodes>": PARTITION,
    "<partition of the CPU nodes>": PARTITION,
    "gpus_per_node: 8": f"gpus_per_node: {GPUS}",
    'time: "04:00:00"': 'time: "00:30:00"',
    "cpus_per_process: 12": "cpus_per_process: 1",
    "cpus_per_process: 32": "cpus_per_process: 1",
    # The checkout of a test may have changes; tests/launching has packaging.
    "packaging: git": "packaging: none\nshared_run_dir: true",
}
# Programs that need a network, or a person who ends them.
LEFT_OUT = ("hf", "tensorboard")


def commands(step: int) -> list[str]:
    """The commands of a step, without comments, continued lines joined."""
    (text,) = re.findall(rf"^## {step}\. .*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    lines = "".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [re.sub(r" {2,}", " ", re.sub(r" {2,}# .*", "", line.strip())) for line in lines]


class Reader:
    """Types commands on the login node: `/shared` is the folder of the test, and `prism` is this checkout's."""

    def __init__(self, cluster, folder: Path) -> None:
        self.cluster, self.folder, self.shared = cluster, folder, folder / "shared"
        programs = folder / "bin"
        for new in (self.shared, programs):
            new.mkdir()
        (programs / "prism").write_text(f'#!/bin/sh\nexec {sys.executable} -m megatron_prism "$@"\n')
        (programs / "prism").chmod(0o755)
        shutil.copytree(ROOT / "recipes/executors", folder / "recipes/executors")
        # srun has no account and no partition of its own here, as on many clusters.
        choices = {
            "SLURM_ACCOUNT": ACCOUNT,
            "SLURM_PARTITION": PARTITION,
            "OMP_NUM_THREADS": "1",
            "USER": "root",
        }
        path = os.pathsep.join([str(programs), *cluster._environment({})["PATH"].split(os.pathsep)])
        code = os.pathsep.join([str(ROOT), *sys.path])
        self.environment = os.environ | cluster.environment | choices | {"PATH": path, "PYTHONPATH": code}

    def types(self, command: str) -> str:
        """What a command prints, which must succeed."""
        typed = command.replace("/shared", str(self.shared))
        ended = subprocess.run(
            ["bash", "-c", typed],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def jobs(self, run: str) -> dict[str, dict[str, str]]:
        """The rows of `prism jobs`, by stage."""
        rows = json.loads(self.types(f"prism jobs --run-dir /shared/runs/{run} --json -"))
        return {row["stage"]: row for row in rows}


@pytest.mark.slow
def test_the_page_leads_to_a_submitted_job(cluster, tmp_path):
    reader = Reader(cluster, tmp_path)
    for command in commands(2):
        reader.types(command)
    for node in cluster.nodes:
        assert "megatron-core" in (tmp_path / f"doctor-{node}.txt").read_text()

    copy, *others = commands(3)
    reader.types(copy)
    executor = tmp_path / "slurm.yaml"
    text = executor.read_text()
    for blank, value in EXECUTOR.items():
        assert blank in text
        text = text.replace(blank, value)
    executor.write_text(text)
    said = [reader.types(command) for command in others]
    assert PARTITION in said[0]
    assert ACCOUNT in said[1]

    for command in commands(4):
        said.append(reader.types(command))
    assert "#SBATCH --nodes=2" in said[-3]
    assert "report: " in said[-2]
    assert {job["state"] for job in reader.jobs("tiny").values()} == {"completed"}

    make_model_and_texts(reader.shared)
    # The jobs must not start, because the weights are not there.
    cluster.run("scontrol", "update", f"partition={PARTITION}", "state=down")
    try:
        for command in commands(5) + commands(6) + commands(7):
            if command.split()[0] not in LEFT_OUT:
                reader.types(command.removesuffix(" --follow"))
        jobs = reader.jobs("granite")
        assert {"import", "corpus", "midtrain", "export"} <= jobs.keys()
        assert {job["state"] for job in jobs.values()} == {"pending"}
        assert cluster.job(jobs["midtrain"]["job"])["NumNodes"] in ("2", "2-2")
        reader.types("prism cancel --run-dir /shared/runs/granite")
    finally:
        cluster.run("scontrol", "update", f"partition={PARTITION}", "state=up")
    assert cluster.run("squeue", "-h") == ""


def make_model_and_texts(shared: Path) -> None:
    """What step 5 downloads; the weights are a file of the right size and names without contents."""
    config = published_config("ibm-granite/granite-3.3-8b-base")
    model = shared / "models/granite-3.3-8b"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(config))
    make_tokenizer(model)
    header, end = {}, 0
    for name, shape in hf_shapes(architecture_from_config(config)).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (shared / "texts").mkdir()
    for source in Mixture.load("mcs").weights:
        texts = "".join(json.dumps({"text": f"{source} {number}"}) + "\n" for number in range(400))
        (shared / "texts" / f"{source}.jsonl").write_text(texts)


def test_the_page_has_a_command_in_every_step():
    assert all(commands(step) for step in range(1, 9) if step != 8)
    assert "gpus=8" in " ".join(commands(7))
