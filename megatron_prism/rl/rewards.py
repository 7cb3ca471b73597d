"""From a verdict to a reward: the format gate, and penalties for unfinished, repetitive and overlong answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import FinishReason
from megatron_prism.pipeline.config import LARGEST_COUNT, not_negative, positive
from megatron_prism.verification.answers.extract import has_think_format


@dataclass
class RewardSettings:
    """The settings of the reward. The paper names the format gate and both penalties, but no numbers for the penalties.

    Attributes:
        correct, wrong: rewards of a correct and a wrong answer.
        format_gate: an answer that is not `<think> ... </think>` followed by text counts as wrong and gets 0, or
            `wrong` if that is less, so that breaking the format never pays more.
        unfinished: the reward of an answer that ran out of tokens, even if it is correct; at most `wrong`. None rewards
            it like any other answer (open-instruct's non_stop_penalty, with its default value).
        repetition_ngram: repetition is measured in n-grams of this many tokens.
        repetition_threshold: up to this share of repeated n-grams there is no penalty.
        repetition_penalty: factor of the share of n-grams that occurred earlier in the answer; the product is
            subtracted.
        overlong_tokens: an answer longer than `overlong_tokens - overlong_buffer` loses up to 1, linearly over the
            buffer (DAPO's soft overlong punishment, arXiv 2503.14476, equation 13); 0 means no penalty.
        overlong_buffer: in tokens.
    """

    correct: float = 1.0
    wrong: float = 0.0
    format_gate: bool = True
    unfinished: float | None = 0.0
    repetition_ngram: int = 20
    repetition_threshold: float = 0.1
    repetition_penalty: float = 0.0
    overlong_tokens: int = 0
    overlong_buffer: int = 0

    def __post_init__(self) -> None:
        # Comparisons are written so that NaN is refused.
        if not -LARGEST_COUNT <= self.wrong < self.correct <= LARGEST_COUNT:
            raise ConfigError(
                f"correct={self.correct}: must be more than wrong={self.wrong}, and both must be from {-LARGEST_COUNT} "
                f"to {LARGEST_COUNT}"
            )
        if self.unfinished is not None and not -LARGEST_COUNT <= self.unfinished <= self.wrong:
            raise ConfigError(
                f"unfinished={self.unfinished}: must be finite and at most wrong={self.wrong}, because otherwise "
                "running out of tokens pays more than a wrong answer; null rewards it like any other answer"
            )
        positive(self, "repetition_ngram", group="rewards")
        not_negative(self, "repetition_penalty", "overlong_tokens", "overlong_buffer", group="rewards")
        if not 0 <= self.repetition_threshold < 1:
            raise ConfigError(
                f"rewards.repetition_threshold={self.repetition_threshold}: must be at least 0 and less than 1"
            )
        if not 0 <= self.overlong_buffer <= self.overlong_tokens or (self.overlong_tokens > 0) != (
            self.overlong_buffer > 0
        ):
            raise ConfigError(
                f"overlong_tokens={self.overlong_tokens}, overlong_buffer={self.overlong_buffer}: set both, with "
                "the buffer at most as large as overlong_tokens, or neither"
            )


@dataclass(frozen=True)
class Reward:
    """`value` is the sum of `parts`; `correct` means a correct answer in the required format."""

    value: float
    correct: bool
    format_ok: bool
    parts: dict[str, float] = field(default_factory=dict)


def reward(
    grade_correct: bool,
    text: str,
    token_ids: Sequence[int],
    *,
    finish_reason: FinishReason,
    settings: RewardSettings,
) -> Reward:
    """The reward of one answer.

    Args:
        text: the answer as the grader saw it.
        token_ids: its tokens, the end token included.
    """
    format_ok = has_think_format(text)
    right = grade_correct and (format_ok or not settings.format_gate)
    base = settings.correct if right else settings.wrong
    if settings.format_gate and not format_ok:
        base = min(0.0, settings.wrong)
    if finish_reason == "length" and settings.unfinished is not None:
        base = settings.unfinished
    parts = {
        "answer": base,
        "repetition": -_repetition_penalty(token_ids, settings),
        "overlong": -_overlong_penalty(len(token_ids), settings),
    }
    return Reward(
        sum(parts.values()), right, format_ok, {k: v for k, v in parts.items() if v or k == "answer"}
    )


def repeated_share(token_ids: Sequence[int], ngram: int) -> float:
    """The share of n-grams that occurred earlier in the sequence; 0 for a sequence shorter than one n-gram."""
    total = len(token_ids) - ngram + 1
    if total < 1:
        return 0.0
    different = {tuple(token_ids[start : start + ngram]) for start in range(total)}
    return 1 - len(different) / total


def _repetition_penalty(token_ids: Sequence[int], settings: RewardSettings) -> float:
    if not settings.repetition_penalty:
        return 0.0
    share = repeated_share(token_ids, settings.repetition_ngram)
    return settings.repetition_penalty * share if share > settings.repetition_threshold else 0.0


def _overlong_penalty(length: int, settings: RewardSettings) -> float:
    if not settings.overlong_tokens:
        return 0.0
    past = length - (settings.overlong_tokens - settings.overlong_buffer)
    return min(1.0, max(0.0, past / settings.overlong_buffer))
