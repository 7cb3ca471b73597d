"""CKA between models, for every pair, point and set of inputs: the paper's section 10.2 and its figures.

One model is in memory at a time. What remains of it are its mean hidden states, `[inputs, points, hidden]` for each
set: 1 GB for three sets of 200 inputs and a model of 40 layers and 10,000 features.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_prism.analysis.cka.bootstrap import draw_resamples, resampled, spread
from megatron_prism.analysis.cka.input_sets import InputSet
from megatron_prism.analysis.cka.pooled_states import Point, Progress, open_model, points_of
from megatron_prism.analysis.cka.similarity import (
    LEAST_INPUTS,
    fault,
    gram,
    gram_chance,
    gram_cka,
    gram_distance,
    gram_unbiased_cka,
    linear_cka,
)
from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.streaming import check_weights
from megatron_prism.conversion.loaded_model import architecture_of
from megatron_prism.conversion.weights import open_weights
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import CheckpointError, ConfigError, DataError
from megatron_prism.generation.request import check_vocabulary
from megatron_prism.models.families import family
from megatron_prism.models.model_folder import longest_sequence

# The paper states no limit. This one keeps its inputs whole, most of C4's included.
DEFAULT_MAX_TOKENS = 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ComparedModel:
    """A model and how to read texts for it.

    Attributes:
        label: its name in tables.
        folder: Megatron's or Hugging Face's.
        engine: 'megatron' or 'hf'.
        tokenizer: a folder.
    """

    label: str
    folder: Path
    engine: str
    tokenizer: Path


@dataclass(frozen=True)
class Resampling:
    """The bootstrap; the numbers of the paper."""

    resamples: int = 20
    size: int = 100
    seed: int = 0

    def check(self, inputs: int) -> None:
        """Raise a ConfigError unless so many inputs can be resampled."""
        # The standard deviation of one resample is not defined.
        if self.resamples < 2:
            raise ConfigError(f"resamples={self.resamples}: must be 2 or more, for a standard deviation")
        if not LEAST_INPUTS <= self.size < inputs:
            raise ConfigError(
                f"resample_size={self.size}: must be {LEAST_INPUTS} or more, and less than samples={inputs}, from "
                "which they are drawn"
            )


def analyze_cka(
    models: Sequence[ComparedModel],
    sets: Sequence[InputSet],
    resampling: Resampling,
    *,
    max_tokens: int | None = None,
    dtype: str = "fp32",
    progress: Progress = lambda rows: None,
) -> Analysis:
    """Run every model on every text, and compare each pair of models.

    Args:
        max_tokens: later tokens of a text are left out; None: 512, or what the models can read if that is less.
        dtype: 'fp32' or 'bf16', in which the models compute.
        progress: called with 1 after each text of each model.

    Raises:
        PrismError: one line, for models or texts that cannot be compared.
    """
    if len(models) < 2:
        raise ConfigError(
            f"{len(models)} models: give two or more models, which are compared with each other"
        )
    for each in sets:
        resampling.check(len(each.texts))
    _check_layers(models)
    limit = _limit(models, max_tokens)
    states: dict[str, dict[str, Tensor]] = {each.name: {} for each in sets}
    about: list[dict[str, Any]] = []
    tokens: dict[str, dict[str, list[list[int]]]] = {}
    layers: dict[str, int] = {}
    for model in models:
        tokens[model.label] = _token_ids(model, sets)
        rows = {name: [row[:limit] for row in ids] for name, ids in tokens[model.label].items()}
        found, layers[model.label] = _pooled(model, rows, DTYPES[dtype], progress)
        _check_equal(models, layers)
        _check_finite(model, found)
        for each in sets:
            states[each.name][model.label] = found[each.name]
        about.append(
            {
                "model": model.label,
                "path": str(model.folder),
                "engine": model.engine,
                "tokenizer": str(model.tokenizer),
                "layers": layers[model.label],
                "hidden_size": states[sets[0].name][model.label].shape[-1],
            }
        )
    points = points_of(layers[models[0].label])
    pairs = [
        {"inputs": name, **pair}
        for name, found in states.items()
        for pair in compare_states(found, points, resampling)
    ]
    own = [
        {
            **{"inputs": name, "model": label, **asdict(point)},
            **describe_states(found[:, number], [min(len(row), limit) for row in tokens[label][name]]),
        }
        for name, by_model in states.items()
        for label, found in by_model.items()
        for number, point in enumerate(points)
    ]
    return Analysis(
        "cka",
        {
            "models": [model.label for model in models],
            "minimum": {
                each.name: {
                    f"{pair['first']} – {pair['second']}": pair["minimum"]["cka"] if pair["minimum"] else None
                    for pair in pairs
                    if pair["inputs"] == each.name
                }
                for each in sets
            },
        },
        {
            "models": about,
            "inputs": [_about_set(each, tokens, limit) for each in sets],
            "settings": {"max_tokens": limit, "dtype": dtype, **asdict(resampling)},
            "pairs": pairs,
            "states": own,
        },
        {"cka": [_row(pair, point) for pair in pairs for point in pair["points"]], "states": own},
        _remarks(models, tokens, pairs),
    )


def compare_states(
    states: Mapping[str, Tensor], points: Sequence[Point], resampling: Resampling
) -> list[dict[str, Any]]:
    """For each pair of models CKA at every point, JSON-ready, with its minimum and mean over the paper's indices.

    Args:
        states: label -> `[inputs, points, hidden]`; models may differ in `hidden`.
    """
    pairs = list(itertools.combinations(states, 2))
    inputs = next(iter(states.values())).shape[0]
    chosen = draw_resamples(inputs, resampling.size, resampling.resamples, resampling.seed)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    for number, point in enumerate(points):
        faults = {label: fault(each[:, number]) for label, each in states.items()}
        grams = {label: gram(each[:, number]) for label, each in states.items() if faults[label] is None}
        parts = dict(zip(grams, resampled(list(grams.values()), chosen), strict=True))
        for pair in pairs:
            reasons = [f"{label} {faults[label]}" for label in pair if faults[label] is not None]
            values: dict[str, Any] = dict.fromkeys(("cka", "one_minus_cka", "unbiased", "chance"))
            resamples = None
            if not reasons:
                first, second = grams[pair[0]], grams[pair[1]]
                values = {
                    "cka": gram_cka(first, second),
                    "one_minus_cka": gram_distance(first, second),
                    "unbiased": gram_unbiased_cka(first, second),
                    "chance": gram_chance(first, second),
                }
                resamples = spread(parts[pair[0]], parts[pair[1]])
            found[pair].append(
                {
                    **asdict(point),
                    **values,
                    "bootstrap": None if resamples is None else asdict(resamples),
                    "undefined": "; ".join(reasons) or None,
                }
            )
    return [{"first": pair[0], "second": pair[1], **_over_points(found[pair])} for pair in pairs]


def describe_states(features: Tensor, tokens: Sequence[int]) -> dict[str, float | None]:
    """What of a representation decides its CKA: few directions, one feature, or the length of a text.

    Args:
        features: `[inputs, hidden]`, means over tokens.
        tokens: the number of tokens of each input.

    Returns:
        `effective_dimension`, (sum of the eigenvalues of the covariance)^2 / sum of their squares;
        `largest_feature`, the share of the variance in the feature that has the most of it;
        `length_cka`, the CKA with the one feature 1 / tokens. Tokens that are the same in every text, such as a start
        token or a template, enter a mean with this factor. None if all texts are equally long.
    """
    if fault(features):
        return dict.fromkeys(("effective_dimension", "largest_feature", "length_cka"))
    matrix = gram(features)
    variances = features.double().var(dim=0)
    return {
        "effective_dimension": float(matrix.trace().square() / matrix.square().sum()),
        "largest_feature": float(variances.max() / variances.sum()),
        "length_cka": linear_cka(features, [[1 / count] for count in tokens]),
    }


def _over_points(points: list[dict[str, Any]]) -> dict[str, Any]:
    counted = [each for each in points if each["index"] is not None and each["cka"] is not None]
    least = min(counted, key=lambda each: each["cka"], default=None)
    return {
        "minimum": None if least is None else {key: least[key] for key in ("name", "index", "cka")},
        "mean": statistics.fmean(each["cka"] for each in counted) if counted else None,
        "points": points,
    }


def _row(pair: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    resamples = point["bootstrap"] or dict.fromkeys(("mean", "std", "low", "high"))
    return {
        **{key: pair[key] for key in ("inputs", "first", "second")},
        **{key: value for key, value in point.items() if key != "bootstrap"},
        **{f"bootstrap_{key}": value for key, value in resamples.items()},
    }


def _pooled(
    model: ComparedModel,
    rows: Mapping[str, list[list[int]]],
    dtype: torch.dtype,
    progress: Progress,
) -> tuple[dict[str, Tensor], int]:
    """The pooled states of every set, and the number of layers. The model is gone when this returns."""
    with open_model(model.folder, model.engine, dtype) as running:
        return {name: running.pooled(ids, progress) for name, ids in rows.items()}, running.layers


def _check_finite(model: ComparedModel, states: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError if a hidden state is not finite, which names the tensor at fault if there is one."""
    wrong = [name for name, found in states.items() if not bool(found.isfinite().all())]
    if not wrong:
        return
    if model.engine != "hf":
        check_weights(open_weights(model.folder))
    raise CheckpointError(
        f"{model.folder}: hidden states of texts of '{wrong[0]}' are NaN or infinite, though no weight is; compute "
        "with --dtype fp32, or leave this model out"
    )


def _check_layers(models: Sequence[ComparedModel]) -> None:
    """Find models that cannot be compared before one of them is loaded."""
    known = {}
    for model in models:
        if model.engine == "megatron":
            architecture = architecture_of(model.folder)
            step = family(architecture.family).layers_per_hf_layer(architecture)
            known[model.label] = architecture.num_layers // step
    _check_equal(models, known)


def _check_equal(models: Sequence[ComparedModel], layers: Mapping[str, int]) -> None:
    by_label = {model.label: model for model in models}
    (first, count), *others = list(layers.items()) or [("", 0)]
    for label, other in others:
        if other != count:
            raise CheckpointError(
                f"{by_label[label].folder}: {other} layers, but {by_label[first].folder} has {count}; layers are "
                "compared in pairs, so give models with equally many"
            )


def _limit(models: Sequence[ComparedModel], max_tokens: int | None) -> int:
    longest = {model.folder: longest_sequence(model.folder) for model in models}
    folder, shortest = min(
        ((folder, length) for folder, length in longest.items() if length is not None),
        key=lambda each: each[1],
        default=(None, None),
    )
    if max_tokens is None:
        return min(DEFAULT_MAX_TOKENS, shortest or DEFAULT_MAX_TOKENS)
    if shortest is not None and max_tokens > shortest:
        raise ConfigError(
            f"max_tokens={max_tokens}: {folder} can read {shortest} tokens; set max_tokens to at most {shortest}"
        )
    return max_tokens


def _token_ids(model: ComparedModel, sets: Sequence[InputSet]) -> dict[str, list[list[int]]]:
    """Set -> the token ids of each text as a prompt, with the start token that the tokenizer's policy gives."""
    tokenizer = Tokenizer.load(model.tokenizer)
    if model.engine == "megatron":
        check_vocabulary(tokenizer, model.tokenizer, architecture_of(model.folder).vocab_size, model.folder)
    found = {}
    for each in sets:
        found[each.name] = tokenizer.encode_batch(each.texts)
        for number, row in enumerate(found[each.name]):
            if not row:
                raise DataError(
                    f"{each.source}: the tokenizer {model.tokenizer} makes no tokens of text {number + 1}; remove it"
                )
    return found


def _about_set(
    inputs: InputSet, tokens: Mapping[str, Mapping[str, list[list[int]]]], limit: int
) -> dict[str, Any]:
    lengths = {label: [len(row) for row in found[inputs.name]] for label, found in tokens.items()}
    return {
        "name": inputs.name,
        "source": inputs.source,
        "texts": len(inputs.texts),
        "sha256": inputs.sha256,
        "mean_tokens": {
            label: statistics.fmean(min(length, limit) for length in found)
            for label, found in lengths.items()
        },
        "cut": {label: sum(length > limit for length in found) for label, found in lengths.items()},
    }


def _remarks(
    models: Sequence[ComparedModel],
    tokens: Mapping[str, Mapping[str, list[list[int]]]],
    pairs: Sequence[Mapping[str, Any]],
) -> list[str]:
    first = models[0].label
    found = [
        f"{model.label} and {first} make different tokens of these texts, so their states are means over other tokens"
        for model in models[1:]
        if tokens[model.label] != tokens[first]
    ]
    undefined = dict.fromkeys(
        f"{pair['inputs']}, {point['name']}: no CKA, because {point['undefined']}"
        for pair in pairs
        for point in pair["points"]
        if point["undefined"]
    )
    return [*found, *undefined]
