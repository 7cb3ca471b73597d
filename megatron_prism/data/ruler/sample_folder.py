"""Makes folders of samples, for many tasks and lengths on several cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from megatron_prism.data.ruler.fitting import TokenCounter
from megatron_prism.data.ruler.generate import Plan, check_plan, make_samples
from megatron_prism.data.ruler.samples import MANIFEST, sample_file, write_samples
from megatron_prism.data.ruler.sources import Sources
from megatron_prism.data.ruler.tasks import Task
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import write_json


def make_folder(
    plan: Plan,
    tokenizer_folder: Path,
    sources: Sources,
    out: Path,
    *,
    workers: int = 2,
    progress: Callable[[int], None] = lambda samples: None,
) -> dict[str, Any]:
    """Write LENGTH/TASK.jsonl.zst for every task and length, and ruler.json; returns the contents of ruler.json.

    Args:
        workers: number of processes, at most one per file; 1: the work is done in this process.
        progress: called with the number of samples whenever a file is complete.

    Raises:
        ConfigError, DataError: see `make_samples`; if possible, before anything is written.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers}: must be 1 or more")
    tokenizer = Tokenizer.load(tokenizer_folder)
    check_plan(plan, tokenizer, sources)
    # The longest length first, so that the workers end at about the same time.
    jobs = [(task, length) for length in sorted(plan.lengths, reverse=True) for task in plan.tasks]
    files: dict[tuple[int, str], dict[str, Any]] = {}
    workers = min(workers, len(jobs))
    if workers == 1:
        counter = TokenCounter(tokenizer)
        for task, length in jobs:
            files[length, task.name] = _write(
                task, length, plan=plan, counter=counter, sources=sources, out=out
            )
            progress(plan.samples)
    else:
        # Spawned, because the threads of tokenizers do not survive a fork.
        pool = ProcessPoolExecutor(
            workers, get_context("spawn"), _start_worker, (plan, tokenizer_folder, sources, out)
        )
        try:
            waiting = {pool.submit(_write_in_worker, *job): job for job in jobs}
            for done in as_completed(waiting):
                task, length = waiting[done]
                files[length, task.name] = done.result()
                progress(plan.samples)
        finally:
            pool.shutdown(cancel_futures=True)
    manifest = {
        "tasks": [task.name for task in plan.tasks],
        "lengths": sorted(plan.lengths),
        "samples": plan.samples,
        "seed": plan.seed,
        "tokenizer": tokenizer.identity,
        "text": tokenizer.record(),
        "files": {
            str(length): {task.name: files[length, task.name] for task in plan.tasks}
            for length in sorted(plan.lengths)
        },
    }
    write_json(out / MANIFEST, manifest)
    return manifest


_worker: dict[str, Any] = {}


def _start_worker(plan: Plan, tokenizer_folder: Path, sources: Sources, out: Path) -> None:
    import os

    # One thread per process, because the processes already use all cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    counter = TokenCounter(Tokenizer.load(tokenizer_folder))
    _worker.update(plan=plan, counter=counter, sources=sources, out=out)


def _write_in_worker(task: Task, length: int) -> dict[str, Any]:
    return _write(task, length, **_worker)


def _write(
    task: Task, length: int, *, plan: Plan, counter: TokenCounter, sources: Sources, out: Path
) -> dict[str, Any]:
    samples = make_samples(
        task,
        counter.tokenizer,
        length,
        plan.samples,
        seed=plan.seed,
        sources=sources,
        keys=plan.keys,
        counter=counter,
    )
    write_samples(sample_file(out, task.name, length), samples)
    tokens = [sample.tokens for sample in samples]
    return {
        "samples": len(samples),
        "min_tokens": min(tokens),
        "max_tokens": max(tokens),
        "total_tokens": sum(tokens),
        "source": samples[0].source,
    }


def stated_sources(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Task -> origin of its text, from a manifest."""
    return {
        task: entry["source"] for by_task in manifest["files"].values() for task, entry in by_task.items()
    }
