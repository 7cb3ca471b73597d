"""The loop that training on text and reinforcement learning share: step, evaluate, checkpoint, until the last step."""

from __future__ import annotations

from collections.abc import Callable

from megatron_prism.errors import Requeue
from megatron_prism.training.checkpoint import TrainingState
from megatron_prism.training.stopping import DESCRIPTIONS, Reason, Stopping


def run_steps(
    state: TrainingState,
    steps: int,
    *,
    take_step: Callable[[], bool],
    evaluate: Callable[[], object],
    evaluate_every: int,
    save: Callable[[], None],
    checkpoint_every: int,
    stopping: Stopping,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Take steps until `state.step` reaches `steps` or a step asks to stop.

    After the last step there is neither an evaluation nor a checkpoint: the caller makes the final ones.

    Args:
        take_step: does one step and advances `state`; returns False to end the run early.
        evaluate_every: steps between evaluations; 0 for none.
        checkpoint_every: steps between checkpoints; 0 for none.
        stopping: asked before every step whether the run must stop.
        after_step: called after every step.

    Raises:
        Requeue: if the run must stop; the state of the last step is saved.
    """
    saved = state.step
    while state.step < steps:
        if reason := stopping.reason():
            if state.step != saved:
                save()
            raise Requeue(stop_message(reason, state.step, steps))
        go_on = take_step()
        after_step()
        if not go_on or state.step == steps:
            return
        if evaluate_every and state.step % evaluate_every == 0:
            evaluate()
        if checkpoint_every and state.step % checkpoint_every == 0:
            save()
            saved = state.step


def stop_message(reason: Reason, step: int, steps: int) -> str:
    """One line for the reader of the log."""
    return f"stopped after step {step} of {steps}, because {DESCRIPTIONS[reason]}; the same command goes on from there"
