"""Kills a training run on two processes many times and compares its end with that of a run that nobody killed.

    python benchmarks/kills.py [--kills 100] [--json FILE]

Both processes get SIGKILL together: at a random moment (two thirds), while a checkpoint is being written, or between
the last step and the finished artifact. Each start must go on right after the newest complete checkpoint, no state may
be unreadable, and the files of the final weights must be the same, byte by byte.
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measure import argument_parser, write

from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.pipeline.artifact import Artifact, partial_path
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.platform.source_tree import ROOT
from megatron_prism.study.registry import load_recipe
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.saved_state import RECORD, resumable_states
from megatron_prism.training.stage import Train

RANKS, STEPS, EVERY = 2, 24, 3
PR_SET_PDEATHSIG = 1
# Kills of one run, in this order; then it may end.
PLAN = ("any", "any", "save") * 5 + ("any", "seal", "seal", "seal", "any")
context = multiprocessing.get_context("forkserver")


@dataclass
class Found:
    """What the kills showed."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    repeated: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    context.set_forkserver_preload(["megatron_prism.training.training_run", "torch.utils.tensorboard"])
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_GLOO_LAZY_INIT": "1"}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        stage, inputs = prepare(work)
        whole = Job(stage, inputs, work / "whole").end()
        found = Found()
        handler = Unreadable(found)
        logging.getLogger("megatron_prism").addHandler(handler)
        rng = random.Random(arguments.seed)
        Campaign(stage, inputs, whole, rng, arguments.kills, found).run(work)
    result = {
        "kills": dict(found.kills),
        "runs": found.runs,
        "steps_repeated_after_a_complete_save": found.repeated,
        "unreadable_states": found.unreadable,
        "runs_with_other_weights": found.different,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result, indent=2))
    write(arguments, result)
    if found.repeated or found.unreadable or found.different:
        raise SystemExit(1)


def prepare(work: Path) -> tuple[Train, dict[str, Artifact]]:
    """The stage and its inputs."""
    texts = work / "texts.jsonl"
    lines = [{"text": f"Line {n}: {n % 7} sheep jump over {n % 5} fences."} for n in range(400)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    graph = load_recipe(str(ROOT / "examples" / "own_text.py")).build({"path": str(texts), "vocab_size": 265})
    assert isinstance(graph.node("tokens").stage, TokenizeCorpus)
    graph.run(work / "data", target="tokens")
    inputs = {name: Artifact.open(work / "data" / name) for name in ("tokens", "tokenizer")}
    stage: Train = graph.node("train").stage
    tiny = replace(
        stage.architecture, vocab_size=265, hidden_size=32, num_layers=2, ffn_hidden_size=48, head_dim=8
    )
    return (
        replace(
            stage,
            architecture=tiny,
            steps=STEPS,
            batch=BatchConfig(32, 2, 4),
            parallel=ParallelConfig(data_parallel_size=RANKS),
            checkpoint_every=EVERY,
            validation_batches=1,
        ),
        inputs,
    )


@dataclass
class Campaign:
    """Many killed runs of one stage, compared with a whole one."""

    stage: Train
    inputs: dict[str, Artifact]
    whole: Artifact
    rng: random.Random
    most: int
    found: Found

    def run(self, folder: Path) -> None:
        while sum(self.found.kills.values()) < self.most:
            self.kill_one_run(folder / f"run-{self.found.runs}")

    def kill_one_run(self, run_dir: Path) -> None:
        """Kill a run as the plan says, let it end, and note what was wrong."""
        found = self.found
        found.runs += 1
        for kind in PLAN:
            if sum(found.kills.values()) >= self.most:
                break
            job = Job(self.stage, self.inputs, run_dir)
            if job.kill(kind, self.rng):
                found.kills[kind] += 1
            found.repeated += job.repeated()
            if job.folder.exists():
                break
        job = Job(self.stage, self.inputs, run_dir)
        made = Artifact.open(job.folder) if job.folder.exists() else job.end()
        made.verify()
        found.repeated += job.repeated()
        if weights(made) != weights(self.whole):
            found.different.append(run_dir.name)


def weights(artifact: Artifact) -> dict[str, str]:
    """The hashes of the files with the final weights."""
    return {each.path: each.sha256 for each in artifact.receipt.outputs if each.path.endswith(".distcp")}


class Unreadable(logging.Handler):
    """Notes every state that the search for checkpoints calls damaged."""

    def __init__(self, found: Found) -> None:
        super().__init__(logging.WARNING)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        self.found.unreadable.append(record.getMessage())


class Job:
    """One start of the run: two processes, of which the first also seals."""

    def __init__(self, stage: Train, inputs: dict[str, Artifact], run_dir: Path) -> None:
        (run_dir / "artifacts").mkdir(parents=True, exist_ok=True)
        fingerprint = stage.fingerprint({name: each.fingerprint for name, each in inputs.items()})
        self.folder = run_dir / "artifacts" / f"{stage.kind}-{fingerprint[:12]}"
        self.partial = partial_path(self.folder)
        self.trace = run_dir / f"steps-{time.monotonic_ns()}"
        states = resumable_states(self.partial) if self.partial.exists() else []
        self.newest = states[0].step if states else 0
        self.start_of = (stage, inputs, fingerprint)
        self.processes: list[Any] = []

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        stage, inputs, fingerprint = self.start_of
        arguments = {
            "port": port,
            "stage": stage,
            "inputs": inputs,
            "fingerprint": fingerprint,
            "folder": self.folder,
            "trace": self.trace,
        }
        self.processes = [
            context.Process(target=rank, args=(number,), kwargs=arguments) for number in range(RANKS)
        ]
        for process in self.processes:
            process.start()

    def end(self) -> Artifact:
        """Let it run to its end."""
        self.start()
        for process in self.processes:
            process.join(300)
            assert process.exitcode == 0, f"a process ended with {process.exitcode}"
        return Artifact.open(self.folder)

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Kill both processes at a moment of this kind; False if they had ended before."""
        self.start()
        next(self._moment(kind, rng))
        alive = all(process.exitcode is None for process in self.processes)
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), f"a process ended with {process.exitcode}"
        return alive

    def _moment(self, kind: str, rng: random.Random) -> Iterator[None]:
        if kind == "any":
            self._wait_for(lambda: self.trace.exists())
            time.sleep(rng.uniform(0.0, 0.6))
        elif kind == "save":
            self._wait_for(lambda: any((self.partial / "resume").glob("*.partial")))
            time.sleep(rng.uniform(0.0, 0.08))
        else:
            self._wait_for(lambda: (self.partial / "checkpoint" / RECORD).exists())
            time.sleep(rng.uniform(0.0, 0.25))
        yield

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        while not happened() and all(process.exitcode is None for process in self.processes):
            time.sleep(0.001)

    def repeated(self) -> list[str]:
        """What is wrong with the steps that this start took."""
        steps = [int(line) for line in self.trace.read_text().splitlines()] if self.trace.exists() else []
        expected = list(range(self.newest + 1, self.newest + 1 + len(steps)))
        return [] if steps == expected else [f"from step {self.newest} it took {steps}"]


def rank(
    number: int,
    *,
    port: int,
    stage: Train,
    inputs: dict[str, Artifact],
    fingerprint: str,
    folder: Path,
    trace: Path,
) -> None:
    """One process of the run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    import torch

    from megatron_prism.pipeline.stage_run import StageRun
    from megatron_prism.training.trainer import Trainer

    torch.set_num_threads(1)
    honest = Trainer.step

    def traced(self: Trainer, dataset: Any, consumed: int, *rest: Any) -> Any:
        if number == 0:
            with open(trace, "a") as file:
                file.write(f"{consumed // stage.batch.global_batch_size + 1}\n")
        return honest(self, dataset, consumed, *rest)

    Trainer.step = traced  # type: ignore[method-assign]
    stage_run = None
    if number == 0:
        stage_run = StageRun("train", stage, fingerprint=fingerprint, folder=folder, inputs=inputs)
    metrics = stage.run(inputs, partial_path(folder))
    if stage_run is not None:
        trace.touch()
        stage_run.seal(metrics)


if __name__ == "__main__":
    main()
