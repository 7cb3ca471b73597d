"""What the ranks of `parity.py` do: train a case, gather its final weights on rank 0, and compare.

One pool of ranks serves all cases, because starting a process costs more than a case. The first `world_size` ranks of
the pool form the process group of a case; the others wait for its end.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from parity_cases import BATCH, HALF, LENGTH, MODELS, ONE, STEPS, VOCABULARY, Case

from megatron_prism.conversion.gather import gather_hf
from megatron_prism.data.document_bounds import DOCUMENTS
from megatron_prism.models.checkpoint_io import load_weights, model_state, unwrap, write_checkpoint
from megatron_prism.models.layers import attention
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

LEARNING_RATE = 1e-2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAIT = timedelta(minutes=3)


class Motifs:
    """Sequences that a model can learn: each repeats a short random motif, and its first tokens do not count.

    The number of counted tokens differs from sample to sample, so an average of averages shows as a wrong loss.
    """

    def __init__(self, with_documents: bool) -> None:
        self.with_documents = with_documents

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index % 6)
        motif = torch.randint(0, VOCABULARY, (3 + index % 6,), generator=generator)
        tokens = motif.repeat(LENGTH // len(motif) + 2)[: LENGTH + 1]
        mask = torch.ones(LENGTH)
        mask[: 3 * (index % 4)] = 0
        positions = torch.arange(LENGTH)
        sample = {"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask, "position_ids": positions}
        # The first document ends at another position in each sample.
        return sample | ({DOCUMENTS: (positions > 20 + index % 7).int()} if self.with_documents else {})


def trainer_of(case: Case, parallel: ParallelConfig) -> Trainer:
    batch = BatchConfig(LENGTH, case.micro_batch_size, BATCH)
    return Trainer(
        MODELS[case.model],
        parallel,
        batch,
        OptimizerSettings(eps=1e-8),
        dtype=DTYPES[case.dtype],
        **dict(case.settings),
    )


def losses(trainer: Trainer, case: Case, first: int, end: int) -> list[float]:
    data = Motifs(case.separates_documents)
    return [trainer.step(data, step * BATCH, LEARNING_RATE)[0] for step in range(first, end)]


def weights(trainer: Trainer, case: Case) -> dict[str, torch.Tensor] | None:
    """The whole weights under their Hugging Face names, on rank 0."""
    gathered = gather_hf(trainer.models, MODELS[case.model])
    return None if gathered is None else {name: tensor.float().clone() for name, tensor in gathered[1]}


def initial(folder: Path, case: Case) -> Path:
    return folder / f"{case.reference.replace('/', '-')}-initial"


def run_reference(case: Case, folder: Path) -> None:
    """The single process: write the initial weights, train, and keep losses and final weights for comparison."""
    with session(ONE, seed=5):
        trainer = trainer_of(case, ONE)
        start = initial(folder, case)
        start.mkdir()
        write_checkpoint(model_state(trainer.models), start)
        found = losses(trainer, case, 0, STEPS)
        torch.save({"losses": found, "weights": weights(trainer, case)}, reference_file(folder, case))


def of_one_process(case: Case) -> Case:
    """The run that a case is compared with."""
    settings = tuple(item for item in case.settings if item[0] == "intra_document")
    return Case(case.model, ONE, dtype=case.dtype, settings=settings)


def reference_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.reference.replace('/', '-')}.pt"


def run_case(
    case: Case, folder: Path, taking_part: Callable[[int], bool] = lambda world: True
) -> dict[str, Any]:
    """Train a case on these ranks; rank 0 returns how far it is from the reference.

    Args:
        taking_part: joins a process group of that many ranks, and says whether this rank is one of them.
    """
    began = time.perf_counter()
    halfway, found, final = folder / "halfway", [], None
    if case.before is not None and taking_part(case.before.world_size):
        with session(case.before, seed=5):
            trainer = fresh(case, case.before, folder)
            found = losses(trainer, case, 0, HALF)
            save_checkpoint(halfway, trainer.models, trainer.optimizer, TrainingState(HALF, HALF * BATCH))
    if taking_part(case.parallel.world_size):
        with CONTROLS[case.control](), session(case.parallel, seed=6):
            trainer = fresh(case, case.parallel, folder)
            if case.before is not None:
                load_checkpoint(halfway, trainer.models, trainer.optimizer)
            found = found + losses(trainer, case, HALF if case.before else 0, STEPS)
            final = weights(trainer, case)
    if final is None:
        return {}
    reference = torch.load(reference_file(folder, case), weights_only=True)
    return compare(found, final, reference) | {"seconds": round(time.perf_counter() - began, 1)}


def fresh(case: Case, parallel: ParallelConfig, folder: Path) -> Trainer:
    """A trainer with the initial weights of the reference."""
    trainer = trainer_of(case, parallel)
    load_weights(trainer.models, initial(folder, case))
    trainer.optimizer.reload_model_params()
    return trainer


def compare(found: list[float], final: dict[str, torch.Tensor], reference: dict[str, Any]) -> dict[str, Any]:
    gaps = [abs(a / b - 1) for a, b in zip(found, reference["losses"], strict=True)]
    distances = {
        name: float((final[name] - whole).norm() / whole.norm())
        for name, whole in reference["weights"].items()
    }
    worst = max(distances, key=distances.__getitem__)
    return {
        "losses": found,
        "loss_gap": max(gaps),
        "weight_gap": distances[worst],
        "worst_weight": worst,
    }


@contextlib.contextmanager
def _gradients_not_reduced() -> Iterator[None]:
    from megatron.core.distributed import DistributedDataParallel

    with patch.object(DistributedDataParallel, "finish_grad_sync", lambda self, *_, **__: None):
        yield


@contextlib.contextmanager
def _wrong_chunk_order() -> Iterator[None]:
    def contiguous(length: int, rank: int, size: int, device: Any) -> torch.Tensor:
        return torch.arange(rank * length, (rank + 1) * length, device=device)

    with patch.object(attention, "chunk_positions", contiguous):
        yield


@contextlib.contextmanager
def _norms_not_summed() -> Iterator[None]:
    build = Trainer.__init__

    def without_marks(self: Trainer, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        for model in self.models:
            for parameter in unwrap(model).parameters():
                if getattr(parameter, "sequence_parallel", False):
                    parameter.sequence_parallel = False

    with patch.object(Trainer, "__init__", without_marks):
        yield


@contextlib.contextmanager
def _same_samples() -> Iterator[None]:
    build = Trainer.__init__

    def as_first_replica(self: Trainer, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        self.share = replace(self.share, data_rank=0)

    with patch.object(Trainer, "__init__", as_first_replica):
        yield


@contextlib.contextmanager
def _optimizer_not_restored() -> Iterator[None]:
    def only_weights(folder: Path, models: list[Any], optimizer: Any) -> None:
        load_weights(models, folder)
        optimizer.reload_model_params()

    with patch.object(sys.modules[__name__], "load_checkpoint", only_weights):
        yield


CONTROLS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "": contextlib.nullcontext,
    "gradients not reduced": _gradients_not_reduced,
    "chunks in a wrong order": _wrong_chunk_order,
    "norm gradients not summed over TP": _norms_not_summed,
    "each replica reads the first one's samples": _same_samples,
    "optimizer state not restored": _optimizer_not_restored,
}


class Pool:
    """This rank's membership in the process group of the moment."""

    def __init__(self, store: Any, rank: int) -> None:
        self.store, self.rank, self.count = store, rank, 0

    def join(self, world_size: int) -> bool:
        """Leave the present group and join the next one; False for a rank that the next one does not need."""
        self.leave()
        self.count += 1
        if self.rank >= world_size:
            return False
        os.environ |= {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank),
            "WORLD_SIZE": str(world_size),
        }
        store = dist.PrefixStore(str(self.count), self.store)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=world_size, timeout=WAIT)
        return True

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def meet(self, size: int, name: str) -> None:
        """Wait until all ranks of the pool are here."""
        self.leave()
        self.store.add(name, 1)
        while self.store.add(name, 0) < size:
            time.sleep(0.02)


def serve(
    rank: int, size: int, folder: Path, *, cases: list[Case], report: Callable[[Case, dict[str, Any]], None]
) -> None:
    """Run all cases on this rank of a pool; rank 0 reports each one."""
    torch.set_num_threads(1)
    pool = Pool(dist.FileStore(str(folder / "store"), size), rank)
    started = set()
    for index, case in enumerate(cases):
        if case.reference not in started:
            started.add(case.reference)
            if pool.join(1):
                run_reference(of_one_process(case), folder)
            pool.meet(size, f"reference {case.reference}")
        try:
            found = run_case(case, folder, pool.join)
        except Exception as problem:
            found = {"failed": traceback.format_exception_only(problem)[-1].strip()}
            if rank == 0:
                traceback.print_exc()
        pool.meet(size, f"case {index}")
        if rank == 0:
            report(case, found)
