"""What pipeline stages send each other is what the neighbour expects; a sender or receiver that differs is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import real_runs
import test_dry_run_reinforce
import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from parallel_runs import layout

from megatron_prism.rl import dry_run as rl
from megatron_prism.training import dry_run as training
from megatron_prism.training.dry_exchanges import disagreements
from megatron_prism.training.dry_step import RankReport

LENGTH, HIDDEN = 64, 32
# Changes of a run, and the shape and dtype that its stages exchange.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "pp4": ({"parallel": layout(pp=4, dp=2)}, f"{LENGTH}x1x{HIDDEN} float32"),
    "virtual stages": ({"parallel": layout(pp=2, vp=2), "dtype": "bf16"}, f"{LENGTH}x1x{HIDDEN} bfloat16"),
    "cp2 tp2 sp": ({"parallel": layout(pp=2, cp=2, tp=2, sp=True)}, f"{LENGTH // 4}x1x{HIDDEN} float32"),
    "hybrid cp2": (
        {"parallel": layout(pp=2, cp=2), "architecture": real_runs.HYBRID, "dtype": "bf16"},
        f"{LENGTH // 2}x1x{HIDDEN} bfloat16",
    ),
}


def found(changes: dict[str, Any]) -> tuple[list[RankReport], list[str]]:
    """The reports of all kinds of stages, and what disagrees."""
    config, _ = training.buildable(real_runs.stage(changes, LENGTH))
    reports = [training.dry_run_rank(config, rank) for rank in training.ranks_of(config)]
    return reports, disagreements(reports, training.trained(config), config.layout)


@pytest.mark.parametrize("name", CASES)
def test_neighbours_agree(name):
    changes, tensor = CASES[name]
    reports, problems = found(changes)
    assert problems == []
    exchanges = [each.exchanges for each in reports]
    sent = [text for each in exchanges for side in (each.to_next, each.to_previous) for text, _ in side]
    assert set(sent) == {tensor}
    # Every micro-batch passes every boundary, and its gradient comes back.
    parallel = changes["parallel"]
    passes = 8 if parallel.virtual_pipeline_model_parallel_size else parallel.pipeline_model_parallel_size
    assert exchanges[0].to_next == exchanges[0].from_next == [(tensor, passes)]


def sends(patch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Every stage sends its activations changed."""
    for name in ("send_forward", "send_forward_recv_backward", "send_forward_recv_forward"):
        correct = getattr(P2PCommunicator, name)

        def send(self: Any, output: Any, *others: Any, correct: Any = correct, **keywords: Any) -> Any:
            wrong = [change(each) for each in output] if isinstance(output, list) else output
            wrong = change(wrong) if isinstance(wrong, torch.Tensor) else wrong
            return correct(self, wrong, *others, **keywords)

        patch.setattr(P2PCommunicator, name, send)


def half(tensor: torch.Tensor) -> torch.Tensor:
    """Of a row; the loss of the last stage, which is not sent, as it is."""
    return tensor[: len(tensor) // 2] if tensor.dim() else tensor


# A case, a fault (a stage that does not cast its sum back, or divides a row that is divided already), what is sent and
# what is expected.
FAULTS = {
    "a dtype": ("pp4", torch.Tensor.double, "4 of 64x1x32 float64", "4 of 64x1x32 float32"),
    "virtual": ("virtual stages", torch.Tensor.double, "8 of 64x1x32 float64", "8 of 64x1x32 bfloat16"),
    "context": ("hybrid cp2", half, "2 of 16x1x32 bfloat16", "2 of 32x1x32 bfloat16"),
    "sequence": ("cp2 tp2 sp", half, "2 of 8x1x32 float32", "2 of 16x1x32 float32"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_difference_is_found(monkeypatch, name):
    case, change, sent, expected = FAULTS[name]
    sends(monkeypatch, change)
    _, problems = found(CASES[case][0])
    assert problems[0].startswith(
        f"activations from pipeline stage 0 to 1: 0 sends {sent}, but 1 expects {expected}; look at parallel"
    )


def test_equal_stages_stand_for_each_other():
    """Of four stages three are built; the pair of the second and the third is compared, too."""
    reports, _ = found(CASES["pp4"][0])
    assert [each.pipeline_stage for each in reports] == [0, 1, 3]
    config, _ = training.buildable(real_runs.stage(CASES["pp4"][0], LENGTH))
    reports[1].exchanges.from_previous[:] = [("64x1x32 float32", 3)]
    problems = disagreements(reports, training.trained(config), config.layout)
    assert [line.partition(":")[0] for line in problems] == [
        "activations from pipeline stage 0 to 1",
        "activations from pipeline stage 1 to 2",
    ]


@pytest.mark.parametrize("kind", test_dry_run_reinforce.MODELS)
def test_sampling_and_updates_of_reinforcement_learning_agree(kind):
    config = test_dry_run_reinforce.config(kind, parallel=layout(pp=2, tp=2, sp=True))
    reports = [rl.dry_run_rank(config, rank) for rank in rl.ranks_of(config)]
    assert disagreements(reports, rl.trained(config), config.layout) == []
    first = reports[0].exchanges
    # A sampled token of each slot, log-probabilities of the reference, and an update.
    assert first.to_next[0] == (f"{8 // 2}x1x{HIDDEN} float32", 1)
    assert sum(count for _, count in first.to_next) > sum(count for _, count in first.from_next) > 0
