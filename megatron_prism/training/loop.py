"""The loop that training on text and reinforcement learning share: step, evaluate, checkpoint, until the last step."""

from __future__ import annotations

from collections.abc import Callable

from megatron_prism.training.checkpoint import TrainingState


def run_steps(
    state: TrainingState,
    steps: int,
    *,
    take_step: Callable[[], bool],
    evaluate: Callable[[], object],
    evaluate_every: int,
    save: Callable[[], None],
    checkpoint_every: int,
) -> None:
    """Take steps until `state.step` reaches `steps` or a step asks to stop.

    After the last step there is neither an evaluation nor a checkpoint: the caller makes the final ones.

    Args:
        take_step: does one step and advances `state`; returns False to end the run early.
        evaluate_every: steps between evaluations; 0 for none.
        checkpoint_every: steps between checkpoints; 0 for none.
    """
    while state.step < steps and take_step() and state.step < steps:
        if evaluate_every and state.step % evaluate_every == 0:
            evaluate()
        if checkpoint_every and state.step % checkpoint_every == 0:
            save()
