"""No numeric field of a stage takes a value that makes no sense; a new field whose range nobody checks fails here.

Every numeric field of every stage that the recipes use gets values that are wrong for nearly all fields. Each must be
refused in one line that names the field, the value and what is allowed, unless `MEANINGFUL` says what the value means.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from megatron_prism.errors import PrismError
from megatron_prism.models.rope import RopeScaling
from megatron_prism.pipeline.config import apply_overrides
from megatron_prism.pipeline.stage import Stage
from megatron_prism.study.registry import load_recipe
from megatron_prism.training.batch import BatchRamp

HUGE = 10**18
ABSURD = {int: (-1, 0, HUGE), float: (-1.0, 0.0, math.nan, math.inf, float(HUGE))}
# No number, or the wrong kind of number; OmegaConf's types refuse them.
NO_NUMBERS: dict[type, tuple[Any, ...]] = {
    int: ("", [], [3, 4], 1.5, math.nan, math.inf),
    float: ("", [], [3, 4]),
}
# Together these have every kind of stage, and every optional group of keys but the ramp.
RECIPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama-3.1-8b", {"long_context": True, "rl": True, "evaluate": True}),
    ("mistral-7b-v0.1", {"long_context": True}),
    ("nemotron-h-8b", {"tiny": True}),
    ("shoebox", {}),
)
OPTIONAL_GROUPS = {
    "ramp": BatchRamp(start=8, increment=8, samples=1000),
    "rope_scaling": RopeScaling(factor=4.0, original_max_position_embeddings=32_768, rope_type="yarn"),
}

NEVER = "0 switches it off"
GREEDY = "0 has no random choice"
ANY_SEED = "every whole number of 63 bits is a seed"
NO_MAMBA = "a model without Mamba layers has no sizes of them"
SHARE = "0 is an end of the range"
NO_LIMIT = "an endless limit switches the check off"
REWARD = "rewards may be any numbers in this order"
# (class, field) -> the absurd values that have a meaning, and the meaning.
MEANINGFUL: dict[tuple[str, str], tuple[tuple[float, ...], str]] = {
    **{
        (name, "seed"): ((0, HUGE), ANY_SEED)
        for name in (
            *(
                "Reinforce",
                "Merge",
                "RulerEvaluate",
                "SamplingParams",
                "SuiteSampling",
                "PromptMix",
                "ShoeboxCorpus",
            ),
            "RandomCheckpoint",
            "AnalyzeCka",
        )
    },
    ("Train", "seed"): ((0,), "the order of the data is drawn by a generator of 32 bits"),
    **{
        ("Architecture", f"mamba_{name}"): ((0,), NO_MAMBA)
        for name in ("num_heads", "head_dim", "state_dim", "num_groups")
    },
    ("Architecture", "initializer_range"): ((0,), "published configs have it; their weights are loaded"),
    ("DataSettings", "prefetch"): ((0,), NEVER),
    ("Schedule", "warmup_steps"): ((0,), NEVER),
    ("Schedule", "final_factor"): ((0,), "the rate decays to zero, as in Table 17"),
    ("OptimizerSettings", "beta1"): ((0,), "no momentum"),
    ("OptimizerSettings", "beta2"): ((0,), "no memory of squared gradients"),
    ("OptimizerSettings", "weight_decay"): ((0,), NEVER),
    ("OptimizerSettings", "clip_grad"): ((0,), NEVER),
    ("GuardSettings", "max_skipped"): ((0,), "the first step that is left out ends the run"),
    ("GuardSettings", "spike_zscore"): ((0,), NEVER),
    ("PrecisionSettings", "layers_at_start_in_bf16"): ((0,), "no layer"),
    ("PrecisionSettings", "layers_at_end_in_bf16"): ((0,), "no layer"),
    ("PrecisionSettings", "optimizer_offload"): ((0,), SHARE),
    ("Train", "validate_every"): ((0,), NEVER),
    ("Train", "checkpoint_every"): ((0,), NEVER),
    ("Train", "stop_after_minutes"): ((0,), NEVER),
    ("CheckpointSettings", "keep_every"): ((0,), NEVER),
    ("CheckpointSettings", "weights_every"): ((0,), NEVER),
    ("LogSettings", "component_norms_every"): ((0,), NEVER),
    ("RetentionWatch", "every"): ((0,), NEVER),
    ("RetentionWatch", "stop_if_loss_rises_by"): ((0,), NEVER),
    ("PackDocuments", "overlap"): ((0,), "neighbouring chunks share nothing"),
    ("SamplingParams", "temperature"): ((0,), GREEDY),
    ("SuiteSampling", "temperature"): ((0,), GREEDY),
    ("RewardSettings", "wrong"): ((0,), REWARD),
    ("RewardSettings", "unfinished"): ((-1, 0), REWARD),
    ("RewardSettings", "repetition_threshold"): ((0,), SHARE),
    ("RewardSettings", "repetition_penalty"): ((0,), NEVER),
    ("RewardSettings", "overlong_tokens"): ((0,), NEVER),
    ("RewardSettings", "overlong_buffer"): ((0,), NEVER),
    ("Reinforce", "give_up_after"): ((0,), NEVER),
    ("Reinforce", "evaluate_every"): ((0,), NEVER),
    ("Reinforce", "checkpoint_every"): ((0,), NEVER),
    ("Reinforce", "answers_every"): ((0,), NEVER),
    ("Reinforce", "stop_after_minutes"): ((0,), NEVER),
    ("LoopSettings", "reference_alpha"): ((0,), SHARE),
    ("LoopSettings", "reference_interval"): ((0,), NEVER),
    ("Objective", "epsilon_low"): ((0,), SHARE),
    ("Objective", "epsilon_high"): ((0,), SHARE),
    ("Objective", "kl_coefficient"): ((0,), NEVER),
    ("Objective", "advantage_epsilon"): ((0,), SHARE),
    ("GateSettings", "mean_ratio"): ((math.inf, HUGE), NO_LIMIT),
    ("GateSettings", "worst_log_ratio"): ((math.inf, HUGE), NO_LIMIT),
    ("PromptMix", "ranges"): ((0,), "prompts without a right answer"),
    ("Frontier", "counts"): ((0,), "prompts without a right answer"),
    ("TrainTokenizer", "source_weights"): ((0,), "the source is left out"),
}


@dataclass(frozen=True)
class Place:
    """A numeric field: the stage, the groups of keys down to it, and how a number becomes the field's value."""

    stage: Any
    groups: tuple[tuple[str, Any], ...]
    name: str
    number: type
    wrapped: bool
    now: Any

    @property
    def owner(self) -> Any:
        return self.groups[-1][1] if self.groups else self.stage

    @property
    def key(self) -> tuple[str, str]:
        return type(self.owner).__name__, self.name

    def value(self, number: Any) -> Any:
        """The number as this field holds it: alone, or as all items of a list or mapping of numbers."""
        return _filled(self.now, number) if self.wrapped else number

    def set(self, number: Any) -> None:
        """Make the stage anew with this number, as an override of the field does."""
        made = dataclasses.replace(self.owner, **{self.name: self.value(number)})
        parents = [self.stage, *(group for _, group in self.groups[:-1])]
        for (key, _), parent in zip(reversed(self.groups), reversed(parents), strict=bool(self.groups)):
            made = dataclasses.replace(parent, **{key: made})

    def refusal(self, number: Any) -> str | None:
        """The message with which the stage refuses the number; None if it is accepted."""
        try:
            self.set(number)
        except PrismError as problem:
            return str(problem)
        return None


def _filled(now: Any, number: Any) -> Any:
    if isinstance(now, dict):
        return {key: _filled(value, number) for key, value in now.items()} or {"web": number}
    if isinstance(now, list):
        return [_filled(value, number) for value in now] or [number]
    return {"web": number} if now is None else number


def _hints(hint: Any) -> Iterator[type]:
    """The number types anywhere in a type."""
    if hint in (int, float):
        yield hint
    for inner in typing.get_args(hint):
        yield from _hints(inner)


def _is_plain(hint: Any) -> bool:
    """Whether the hint is a number, or a number or None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_plain(inner) for inner in typing.get_args(hint))
    return hint in (int, float)


def places(stage: Any, config: Any = None, groups: tuple[tuple[str, Any], ...] = ()) -> Iterator[Place]:
    """Every numeric field of a stage, at any depth."""
    config = stage if config is None else config
    hints = typing.get_type_hints(type(config))
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if value is None and each.name in OPTIONAL_GROUPS:
            value = OPTIONAL_GROUPS[each.name]
        if dataclasses.is_dataclass(value):
            yield from places(stage, value, (*groups, (each.name, value)))
        elif number := next(_hints(hints[each.name]), None):
            yield Place(stage, groups, each.name, number, not _is_plain(hints[each.name]), value)


@pytest.fixture(scope="module")
def found() -> list[Place]:
    """Every field once per kind of stage that has it."""
    unique: dict[tuple[Any, ...], Place] = {}
    for name, values in RECIPES:
        for node in load_recipe(name).graph(values, planned=True).nodes.values():
            for place in places(node.stage):
                # Some models lack an optional group, so a later stage of the same kind may have more fields.
                path = tuple(key for key, _ in place.groups)
                scaling = getattr(place.owner, "rope_type", "")
                unique.setdefault((type(node.stage), path, place.key, scaling), place)
    return list(unique.values())


def faults(place: Place) -> list[str]:
    """What is wrong with how the field treats absurd numbers."""
    allowed, _ = MEANINGFUL.get(place.key, ((), ""))
    wrong = []
    for number in ABSURD[place.number]:
        message = place.refusal(number)
        where = f"{'.'.join(place.key)}={number}"
        if message is None:
            if number not in allowed:
                wrong.append(f"{where} is accepted; check its range in __post_init__, or say what it means")
        elif "\n" in message or place.name.rstrip("s") not in message or str(number) not in message:
            wrong.append(f"{where}: the message does not name the field and the value in one line: {message}")
        elif not re.search(
            r"must|need|at most|name at least|longer than|lowest|counted from|remove it|only ", message
        ):
            wrong.append(f"{where}: the message does not say what is allowed: {message}")
    return wrong


def test_every_number_is_refused_or_has_a_meaning(found):
    wrong = [fault for place in found for fault in faults(place)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_walk_reaches_the_fields_at_any_depth(found):
    reached = {place.key for place in found}
    assert {("RopeScaling", "factor"), ("ContextExtension", "rope_theta"), ("BatchRamp", "start")} < reached
    assert {("Difficulty", "chunk"), ("Evaluate", "limit"), ("ShoeboxCorpus", "characters")} < reached
    assert len(reached) > 120


def test_every_meaning_is_needed(found):
    """A value that is refused needs no explanation, and a field that is gone has none."""
    unused = {
        f"{'.'.join(key)}={number}"
        for key, (numbers, _) in MEANINGFUL.items()
        for number in numbers
        if all(place.refusal(number) is not None for place in found if place.key == key)
    }
    assert not unused


def test_what_is_no_number_is_refused_with_key_and_value(found):
    """By the types that an override goes through before the stage is made; one field of each type is tried."""
    plain = sorted((each for each in found if not each.wrapped), key=lambda each: len(vars(each.owner)))
    kinds = {(each.number, each.now is None): each for each in reversed(plain)}
    assert len(kinds) == 4
    wrong = []
    for place in kinds.values():
        for value in NO_NUMBERS[place.number]:
            try:
                apply_overrides(place.owner, {place.name: value})
                wrong.append(f"{place.key}={value!r} is accepted")
            except PrismError as problem:
                if f"{place.name}={value!r}: must be a" not in str(problem) or "\n" in str(problem):
                    wrong.append(f"{place.key}={value!r}: {problem}")
    assert not wrong, "\n" + "\n".join(wrong)


@dataclass
class Group:
    checked: int = 1
    shares: dict[str, float] = field(default_factory=lambda: {"web": 1.0})

    def __post_init__(self) -> None:
        if not 1 <= self.checked <= 9:
            raise PrismError(f"checked={self.checked}: must be from 1 to 9")


@dataclass
class Careless(Stage):
    kind: ClassVar[str] = "careless"
    group: Group = field(default_factory=Group)
    steps: int = 1

    def run(self, inputs: Any, out: Any) -> dict[str, Any]:
        return {}


def test_a_field_whose_range_nobody_checks_is_reported():
    """The control: of the three fields of this stage, one is checked."""
    reported = {place.name: len(faults(place)) for place in places(Careless())}
    assert reported == {"checked": 0, "shares": 5, "steps": 3}
