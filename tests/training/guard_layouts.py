"""Worker of test_guard.py: a step with a NaN somewhere, and then a good one, in several layouts of two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parallel_runs import VOCABULARY, Motifs, layout, write_results

from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.guard import Guard, GuardSettings
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

DENSE = Architecture("granite", VOCABULARY, 32, 4, 64, 4, 2, 8)
DP, PP, TP = layout(dp=2), layout(pp=2), layout(tp=2)
PLAIN_DP = replace(DP, use_distributed_optimizer=False)
# Layout, rank whose gradients get a NaN (-1: the loss of one data-parallel rank is NaN instead).
CASES: dict[str, tuple[ParallelConfig, int]] = {
    "dp2 gradient of rank 1": (DP, 1),
    "dp2 plain optimizer": (PLAIN_DP, 1),
    "dp2 loss": (DP, -1),
    "pp2 gradient of the first stage": (PP, 0),
    "pp2 gradient of the last stage": (PP, 1),
    "tp2 gradient of rank 0": (TP, 0),
}
WORLDS = (2,)


def main(folder: Path) -> None:
    results: dict[str, Any] = {name: two_steps(*case) for name, case in CASES.items()}
    with session(DP, seed=3):
        results["disagreement"] = disagreement()
    write_results(folder, results)


def two_steps(parallel: ParallelConfig, bad_rank: int) -> dict[str, Any]:
    """One good step, one with the NaN, one good step again; findings of the last two."""
    rank = dist.get_rank()
    with session(parallel, seed=3):
        run = Trainer(
            DENSE, parallel, BatchConfig(32, 2, 4), OptimizerSettings(eps=1e-8), dtype=torch.float32
        )
        judge = Guard(GuardSettings())
        run.step(Motifs(32), 0, 1e-2, judge.accept)
        found: dict[str, Any] = {"world": dist.get_world_size()}
        found |= {key: [] for key in ("verdicts", "weights_moved", "moments_moved", "step_counts")}
        for bad in (True, False):
            data = PoisonedMotifs(32, bad and bad_rank < 0 and rank == 1)
            hook = spoil_gradients(run, rank) if bad and rank == bad_rank else None
            before = snapshot(run)
            run.step(data, 4, 1e-2, judge.accept)
            after = snapshot(run)
            if hook is not None:
                hook.remove()
            verdicts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(verdicts, int(judge.verdict))
            found["verdicts"].append(verdicts)
            found["weights_moved"].append(moved(before[0], after[0]))
            found["moments_moved"].append(moved(before[1], after[1]))
            found["step_counts"].append(step_count(run))
        found["finite"] = all(bool(torch.isfinite(each).all()) for each in after[0] + after[1])
    return found


class PoisonedMotifs(Motifs):
    """The loss of this rank's samples is NaN if `bad`."""

    def __init__(self, length: int, bad: bool) -> None:
        super().__init__(length)
        self.bad = bad

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        made = super().__getitem__(index)
        return made | {"loss_mask": made["loss_mask"] * torch.nan} if self.bad else made


def spoil_gradients(run: Trainer, rank: int) -> Any:
    """One element of the gradient of one parameter of this rank becomes NaN in the backward pass."""
    parameters = run.models[0].module.named_parameters()
    parameter = next(each for name, each in parameters if "linear_qkv.weight" in name)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[rank] = torch.nan
        return gradient

    return parameter.register_hook(spoil)


def snapshot(run: Trainer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Copies of this rank's weights and of its optimizer's moments."""
    weights = [p.detach().clone() for model in run.models for p in model.parameters()]
    moments = [
        state[key].clone()
        for part in run.optimizer.chained_optimizers
        for state in part.optimizer.state.values()
        for key in ("exp_avg", "exp_avg_sq")
    ]
    return weights, moments


def moved(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    """Whether anything changed on any rank."""
    own = torch.tensor([int(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))])
    dist.all_reduce(own, op=dist.ReduceOp.MAX)
    return bool(own.item())


def step_count(run: Trainer) -> int:
    counts = {
        int(state["step"])
        for part in run.optimizer.chained_optimizers
        for state in part.optimizer.state.values()
        if "step" in state
    }
    assert len(counts) == 1, counts
    return counts.pop()


def disagreement() -> dict[str, list[int]]:
    """A loss that is a spike on rank 0 only, by a rounding of its last bit."""
    from megatron_prism.training import guard

    losses = [1.0, 2.0] * 16
    edge = 1.5 + 6 * 0.5
    loss = torch.tensor(edge, dtype=torch.float64)
    mine = float(
        torch.nextafter(loss, torch.tensor(9.0 if dist.get_rank() == 0 else 0.0, dtype=torch.float64))
    )
    found: dict[str, list[int]] = {}
    for name, agree in (("together", guard._agree), ("alone", lambda own: own)):
        honest, guard._agree = guard._agree, agree
        try:
            judge = Guard(GuardSettings(), {"losses": losses})
            judge.accept(mine, 1.0)
        finally:
            guard._agree = honest
        everyone: list[Any] = [None] * 2
        dist.all_gather_object(everyone, int(judge.verdict))
        found[name] = everyone
    return found
