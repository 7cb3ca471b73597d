"""Which model's config and tokenizer a merge keeps, and how those of the other models differ.

The model with the largest weight in the result provides config, generation config, tokenizer, chat template and all
other files next to the weights. The user may choose another model's tokenizer; the files that belong to it then come
from that model, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prism.conversion.config_json import write_config
from megatron_prism.conversion.side_files.carry import (
    CARRIED_PATTERNS,
    CODE_PATTERNS,
    TOKENIZER_PATTERNS,
    carry_files,
    copy_files,
    matching,
    replace_tokenizer,
)
from megatron_prism.conversion.side_files.token_ids import TOKEN_IDS, disagreements, update_token_ids
from megatron_prism.conversion.side_files.tokenizer_facts import SPECIAL, has_tokenizer, tokenizer_facts
from megatron_prism.conversion.weights import Weights
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.model_folder import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, read_json
from megatron_prism.pipeline.artifact import write_json

# Keys that are not compared: they describe how a file was written or loaded, or the output and cache of a program.
IGNORED_KEYS = (
    *("transformers_version", "_from_model_config", "_name_or_path", "name_or_path", "tokenizer_file"),
    *("is_local", "local_files_only", "output_attentions", "output_hidden_states", "use_cache"),
)
ABSENT = "no "
# Files that come with the config. Code is not compared.
OTHER_PATTERNS = tuple(
    pattern
    for pattern in CARRIED_PATTERNS
    if pattern not in (CONFIG, GENERATION_CONFIG, *TOKENIZER_PATTERNS, *CODE_PATTERNS)
)
# A longer value is not shown in a message.
SHOWN = 40


@dataclass(frozen=True)
class SideFiles:
    """Where the files of one result come from.

    Attributes:
        architecture: of the model with the largest weight. The others differ from it at most in
            `max_position_embeddings`.
        config: folder of the config and of all files that do not belong to the tokenizer; None if no model has one.
        tokenizer: folder of the tokenizer, generation config and token ids; None if no model has any.
        remarks: messages for the user, one line each.
    """

    architecture: Architecture
    config: Path | None
    tokenizer: Path | None
    remarks: list[str]


def choose_side_files(
    models: Sequence[Weights], weights: Sequence[float], tokenizer_from: Path | None = None
) -> SideFiles:
    """Choose the models whose files one result keeps.

    Args:
        weights: of all models, including the base. If two weights are equal, the first model counts as the larger.
        tokenizer_from: folder of the model whose tokenizer is kept; by default the one with the largest weight of those
            that have a tokenizer.

    Raises:
        ConfigError: if `tokenizer_from` is not one of the models, or has no tokenizer.
    """
    order = sorted(range(len(models)), key=lambda place: -weights[place])
    ranked = [models[place] for place in order]
    heaviest = ranked[0]
    with_config = next((model for model in ranked if _has_config(model)), None)
    with_tokenizer = next((model for model in ranked if _has_tokenizer(model)), with_config)
    why = (
        "it has the largest weight"
        if with_tokenizer is heaviest
        else "it has the largest weight of those with a tokenizer"
    )
    if tokenizer_from is not None:
        with_tokenizer, why = _model_named(models, tokenizer_from), "tokenizer_from"
    remarks = []
    for model in models:
        mine, kept = (each.architecture.max_position_embeddings for each in (model, heaviest))
        if mine != kept:
            remarks.append(
                f"{model.path} has max_position_embeddings={mine}; the result keeps {kept} of {heaviest.path}"
            )
    if with_tokenizer is not None:
        remarks += _differences(models, with_tokenizer, with_config or with_tokenizer, why)
        assert with_tokenizer.files is not None
        remarks += disagreements(with_tokenizer.files, heaviest.architecture.vocab_size)
    return SideFiles(
        heaviest.architecture,
        None if with_config is None else with_config.files,
        None if with_tokenizer is None else with_tokenizer.files,
        remarks,
    )


def write_side_files(sources: SideFiles, out: Path, dtype: torch.dtype) -> list[str]:
    """Write the chosen files into `out`, if any model has some.

    Returns:
        Remarks on files that were not copied.
    """
    if sources.config is None:
        return []
    remarks = carry_files(sources.config, out)
    if sources.tokenizer is not None and sources.tokenizer != sources.config:
        remarks += replace_tokenizer(sources.tokenizer, out)
        (out / GENERATION_CONFIG).unlink(missing_ok=True)
        remarks += copy_files(sources.tokenizer, out, (GENERATION_CONFIG,))
        if (sources.tokenizer / CONFIG).is_file():
            _take_token_ids(sources.tokenizer / CONFIG, out / CONFIG)
        else:
            # In models that can be merged no id has two meanings, so the old vocabulary is passed as the same.
            facts = tokenizer_facts(sources.tokenizer)
            remarks += update_token_ids(out, facts, facts.vocabulary)
    write_config(out, sources.architecture, dtype, {})
    return remarks


def _take_token_ids(source: Path, target: Path) -> None:
    """Replace the special token ids of one config by those of another. A key that is absent there is removed."""
    theirs, mine = read_json(source), read_json(target)
    ids = {key: theirs[key] for key in SPECIAL if key in theirs}
    if {key: mine[key] for key in SPECIAL if key in mine} != ids:
        write_json(target, {key: value for key, value in mine.items() if key not in SPECIAL} | ids)


def _has_config(model: Weights) -> bool:
    return model.files is not None and (model.files / CONFIG).is_file()


def _has_tokenizer(model: Weights) -> bool:
    return model.files is not None and has_tokenizer(model.files)


def _model_named(models: Sequence[Weights], wanted: Path) -> Weights:
    found = next((model for model in models if model.path.resolve() == wanted.resolve()), None)
    if found is None:
        listed = ", ".join(str(model.path) for model in models)
        raise ConfigError(f"tokenizer_from={wanted}: is not one of the merged models; name one of {listed}")
    if not _has_tokenizer(found):
        raise ConfigError(f"tokenizer_from={wanted}: this model has no tokenizer; name another")
    return found


def _differences(models: Sequence[Weights], winner: Weights, config: Weights, why: str) -> list[str]:
    """One line for each model whose files differ from those that are kept, or that has no tokenizer.

    Args:
        winner: the model whose tokenizer, generation config and token ids are kept.
        config: the model whose other files are kept.
        why: why `winner` was chosen.
    """
    assert winner.files is not None
    assert config.files is not None
    remarks = []
    for model in models:
        no_tokenizer = _has_tokenizer(winner) and not _has_tokenizer(model)
        if no_tokenizer:
            remarks.append(
                f"{model.path}: has no tokenizer to compare; the result keeps that of {winner.path} ({why})"
            )
        if model.files is None:
            continue
        found = [] if model.path == winner.path else differences(model.files, winner.files, no_tokenizer)
        others = [] if model.path == config.path else _other_files(model.files, config.files, OTHER_PATTERNS)
        if winner.path == config.path:
            found, others = found + ([] if no_tokenizer else others), []
        if found:
            remarks.append(
                f"the files of {winner.path} are kept ({why}); {model.path} differs: {'; '.join(found)}"
            )
        if others:
            remarks.append(
                f"the other files of {config.path} are kept (it has the largest weight); {model.path} differs: "
                f"{'; '.join(others)}"
            )
    return remarks


def differences(folder: Path, winner: Path, no_tokenizer: bool = False) -> list[str]:
    """The differences between tokenizer, generation config and token ids of two folders.

    Args:
        winner: the folder whose files are kept.
        no_tokenizer: `folder` has no tokenizer, so only the keys and files that it has are compared.

    Returns:
        One entry for each difference, with the values where they are short.
    """
    found = []
    for name, keys in ((CONFIG, TOKEN_IDS), (GENERATION_CONFIG, None), (TOKENIZER_CONFIG, None)):
        mine, theirs = _json(folder / name), _json(winner / name)
        if mine is None or theirs is None:
            continue
        for key in sorted(mine.keys() | theirs.keys()) if keys is None else keys:
            if (
                key not in IGNORED_KEYS
                and mine.get(key) != theirs.get(key)
                and (key in mine or not no_tokenizer)
            ):
                found.append(f"{name} {key} {_shown(mine, key)} (kept: {_shown(theirs, key)})")
    others = _other_files(folder, winner, (GENERATION_CONFIG, *TOKENIZER_PATTERNS))
    return found + [each for each in others if not (no_tokenizer and each.startswith(ABSENT))]


def _other_files(folder: Path, winner: Path, patterns: tuple[str, ...]) -> list[str]:
    """The files that match these patterns and are in one folder only, or differ."""
    found = []
    for name in sorted({*matching(folder, patterns), *matching(winner, patterns)}):
        if not (folder / name).is_file():
            found.append(f"{ABSENT}{name}")
        elif not (winner / name).is_file():
            found.append(f"{name} (not kept)")
        elif name not in (GENERATION_CONFIG, TOKENIZER_CONFIG) and not _same(folder / name, winner / name):
            found.append(f"another {name} (not kept)")
    return found


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _same(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


def _shown(content: Mapping[str, Any], key: str) -> str:
    text = json.dumps(content[key], ensure_ascii=False) if key in content else "absent"
    return text if len(text) <= SHOWN else "(too long to show)"
