"""What was done to each model of a run, in the words of the published rows: which of them, if any, it may stand beside.

A role is a path: "base", "mcs" (mid-trained on Math+Code+Science with the paper's length and steps),
"mc>merge>extend-all", "mcs>rl-mcs". A run that differs from the paper in one of these gets another role, and so no
published row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.report.paper.published import Published
from megatron_prism.report.records import Run, StageRecord

# The paper's mixtures, length and steps of mid-training, merge weights and RL mixes.
MIXTURES = {"math": "Math", "mc": "Math+Code", "mcs": "Math+Code+Science"}
LENGTH, STEPS = 8192, 25_000
MERGE = (0.15, 0.85)
RL_MIXES = {("code", "math"): "mc", ("code", "math", "science"): "mcs"}
UNBALANCED = "unbalanced"
BASE = "base"
# Two models are the same architecture if these agree; vocabularies are padded, and contexts extended.
SIZES = (
    *("family", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
    "hybrid_pattern",
)


def published_name(run: Run, paper: Published) -> str | None:
    """The model of the paper that a run is about: its recipe has the name, and its stages the architecture.

    The miniature of a recipe (tiny=true) has the name only.
    """
    if run.recipe not in paper.models:
        return None
    expected = architecture_from_config(published_config(paper.hubs[run.recipe]))
    found = [each.config["architecture"] for each in run.stages if each.config.get("architecture")]
    same = [all(mine.get(key) == getattr(expected, key) for key in SIZES) for mine in found]
    return run.recipe if same and all(same) else None


def roles(run: Run) -> dict[str, str]:
    """Stage -> the role of the model that it makes; stages that make none are left out."""
    stages = {stage.name: stage for stage in run.stages}
    found: dict[str, str | None] = {}

    def of(name: str) -> str | None:
        if name not in found:
            found[name] = None
            found[name] = _role(stages[name])
        return found[name]

    def _role(stage: StageRecord) -> str | None:
        config, inputs = stage.config, stage.inputs
        if stage.kind in ("import", "model"):
            return BASE
        if stage.kind == "train":
            return _trained(config, of(inputs["init"]) if "init" in inputs else None)
        if stage.kind == "merge":
            return _merged(config, {key: of(parent) for key, parent in inputs.items()})
        if stage.kind == "rl":
            start = of(inputs["model"]) if "model" in inputs else None
            mix = stages.get(inputs.get("prompts", ""))
            return f"{start or 'other'}>rl-{_rl_mix(mix.config if mix else {})}"
        return None

    return {name: role for name in stages if (role := of(name)) is not None}


def words(role: str) -> str:
    """A role for a reader."""
    first, *steps = role.split(">")
    said = ["base model" if first == BASE else f"mid-trained on {MIXTURES.get(first, first)}"]
    for step in steps:
        name, _, detail = step.partition("-")
        if name == "rl":
            said.append(f"RL on {detail}")
        elif name == "extend":
            said.append("context extended" + (", attention only" if detail == "attention" else ""))
        else:
            said.append(f"merged with the base ({step.removeprefix('merge ') if ' ' in step else '15/85'})")
    return ", ".join(said)


def midtrained(role: str) -> bool:
    """Whether mid-training is all that was done to it."""
    return role != BASE and ">" not in role


def _trained(config: Mapping[str, Any], start: str | None) -> str:
    if start is None:
        return "other" if config.get("init_from") else BASE
    if start != BASE:
        return f"{start}>extend-{config.get('trainable', 'all')}"
    mixture = str(config.get("mixture") or "other")
    if mixture not in MIXTURES:
        return mixture
    length = (config.get("batch") or {}).get("sequence_length")
    steps = config.get("steps")
    return f"{mixture}{f'@{length}' if length != LENGTH else ''}{f'#{steps}' if steps != STEPS else ''}"


def _merged(config: Mapping[str, Any], models: Mapping[str, str | None]) -> str:
    others = [(key, role) for key, role in models.items() if role is not None and role != BASE]
    if len(others) != 1 or len(models) != 2:
        return "other>merge"
    key, role = others[0]
    weights = config.get("weights", {})
    mine = weights.get(key)
    base = next((weight for name, weight in weights.items() if name != key), None)
    paper = (base, mine) == MERGE and config.get("method") == "linear"
    return f"{role}>merge" if paper else f"{role}>merge {base}/{mine}"


def _rl_mix(config: Mapping[str, Any]) -> str:
    domains = tuple(sorted(config.get("domains") or []))
    name = RL_MIXES.get(domains, "+".join(domains) or "other prompts")
    return name if config.get("mix") == UNBALANCED else f"{name} ({config.get('mix', 'unknown')})"
