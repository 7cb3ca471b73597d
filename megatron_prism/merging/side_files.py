"""Which model's config and tokenizer a merge keeps, and what the others say differently.

The rule: the model that weighs most in the result gives config, generation config, tokenizer, chat template and all
other files beside the weights. A tokenizer may be chosen instead; the files that go with it come from that model, too.
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
from megatron_prism.conversion.side_files.token_ids import TOKEN_IDS, disagreements, follow_tokenizer
from megatron_prism.conversion.side_files.tokenizer_facts import SPECIAL, has_tokenizer, tokenizer_facts
from megatron_prism.conversion.weights import Weights
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.model_folder import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, read_json
from megatron_prism.pipeline.artifact import write_json

# Keys that say by what a file was written or loaded, or what a program is to print and cache.
PASSING = (
    *("transformers_version", "_from_model_config", "_name_or_path", "name_or_path", "tokenizer_file"),
    *("is_local", "local_files_only", "output_attentions", "output_hidden_states", "use_cache"),
)
ABSENT = "no "
# What comes with the config; code is not compared.
OTHER_PATTERNS = tuple(
    pattern
    for pattern in CARRIED_PATTERNS
    if pattern not in (CONFIG, GENERATION_CONFIG, *TOKENIZER_PATTERNS, *CODE_PATTERNS)
)
# A value longer than this is named and not shown.
SHOWN = 40


@dataclass(frozen=True)
class SideFiles:
    """Where the files of one result come from.

    Attributes:
        architecture: of the model that weighs most: that of the others but for the positions they were trained on.
        config: folder of the config and of everything that does not go with the tokenizer; None where no model has one.
        tokenizer: folder of the tokenizer, generation config and token ids; None where no model has any.
        remarks: what a user should hear, one line each.
    """

    architecture: Architecture
    config: Path | None
    tokenizer: Path | None
    remarks: list[str]


def choose_side_files(
    models: Sequence[Weights], weights: Sequence[float], tokenizer_from: Path | None = None
) -> SideFiles:
    """Decide for one result.

    Args:
        weights: of all models, a base included; of equal ones the first counts as the largest.
        tokenizer_from: folder of the model whose tokenizer is to be kept; None: that of the heaviest that has one.

    Raises:
        ConfigError: when `tokenizer_from` is none of the models or has no tokenizer.
    """
    order = sorted(range(len(models)), key=lambda place: -weights[place])
    ranked = [models[place] for place in order]
    heaviest = ranked[0]
    with_config = next((model for model in ranked if _has_config(model)), None)
    with_tokenizer = next((model for model in ranked if _has_tokenizer(model)), with_config)
    why = "it weighs most" if with_tokenizer is heaviest else "of those that have a tokenizer it weighs most"
    if tokenizer_from is not None:
        with_tokenizer, why = _named(models, tokenizer_from), "as tokenizer_from asks"
    said = []
    for model in models:
        mine, kept = (each.architecture.max_position_embeddings for each in (model, heaviest))
        if mine != kept:
            said.append(
                f"{model.path} has max_position_embeddings={mine}; the result keeps {kept} of {heaviest.path}"
            )
    if with_tokenizer is not None:
        said += _differences(models, with_tokenizer, with_config or with_tokenizer, why)
        assert with_tokenizer.files is not None
        said += disagreements(with_tokenizer.files, heaviest.architecture.vocab_size)
    return SideFiles(
        heaviest.architecture,
        None if with_config is None else with_config.files,
        None if with_tokenizer is None else with_tokenizer.files,
        said,
    )


def write_side_files(sources: SideFiles, out: Path, dtype: torch.dtype) -> list[str]:
    """Write the chosen files into `out`; nothing where no model has any.

    Returns:
        Remarks on what was left behind.
    """
    if sources.config is None:
        return []
    said = carry_files(sources.config, out)
    if sources.tokenizer is not None and sources.tokenizer != sources.config:
        said += replace_tokenizer(sources.tokenizer, out)
        (out / GENERATION_CONFIG).unlink(missing_ok=True)
        said += copy_files(sources.tokenizer, out, (GENERATION_CONFIG,))
        if (sources.tokenizer / CONFIG).is_file():
            _take_token_ids(sources.tokenizer / CONFIG, out / CONFIG)
        else:
            # What may be merged has no number with two meanings, so the vocabulary before was this one.
            facts = tokenizer_facts(sources.tokenizer)
            said += follow_tokenizer(out, facts, facts.vocabulary)
    write_config(out, sources.architecture, dtype, {})
    return said


def _take_token_ids(source: Path, target: Path) -> None:
    """The special tokens' ids of one config in another; a key that one lacks, the other lacks."""
    theirs, mine = read_json(source), read_json(target)
    ids = {key: theirs[key] for key in SPECIAL if key in theirs}
    if {key: mine[key] for key in SPECIAL if key in mine} != ids:
        write_json(target, {key: value for key, value in mine.items() if key not in SPECIAL} | ids)


def _has_config(model: Weights) -> bool:
    return model.files is not None and (model.files / CONFIG).is_file()


def _has_tokenizer(model: Weights) -> bool:
    return model.files is not None and has_tokenizer(model.files)


def _named(models: Sequence[Weights], wanted: Path) -> Weights:
    found = next((model for model in models if model.path.resolve() == wanted.resolve()), None)
    if found is None:
        listed = ", ".join(str(model.path) for model in models)
        raise ConfigError(
            f"tokenizer_from={wanted}: is none of the models that are merged; they are {listed}"
        )
    if not _has_tokenizer(found):
        raise ConfigError(f"tokenizer_from={wanted}: this model came without a tokenizer; name another")
    return found


def _differences(models: Sequence[Weights], winner: Weights, config: Weights, why: str) -> list[str]:
    """One line for each model whose files say something else than those that are kept, or that has no tokenizer.

    Args:
        winner, config: whose tokenizer, generation config and token ids are kept; whose other files.
    """
    assert winner.files is not None
    assert config.files is not None
    said = []
    for model in models:
        bare = _has_tokenizer(winner) and not _has_tokenizer(model)
        if bare:
            said.append(
                f"{model.path}: has no tokenizer to compare; the result keeps that of {winner.path} ({why})"
            )
        if model.files is None:
            continue
        found = [] if model.path == winner.path else differences(model.files, winner.files, bare)
        others = [] if model.path == config.path else _other_files(model.files, config.files, OTHER_PATTERNS)
        if winner.path == config.path:
            found, others = found + ([] if bare else others), []
        if found:
            said.append(
                f"the files of {winner.path} are kept ({why}); {model.path} has other ones: {'; '.join(found)}"
            )
        if others:
            said.append(
                f"the other files of {config.path} are kept (it weighs most); {model.path} has other ones: "
                f"{'; '.join(others)}"
            )
    return said


def differences(folder: Path, winner: Path, bare: bool = False) -> list[str]:
    """In what the tokenizer, generation config and token ids of `folder` differ from those of `winner`.

    Args:
        bare: `folder` has no tokenizer, so only what it does have is named.

    Returns:
        One entry for each difference, with the values where they are short.
    """
    found = []
    for name, keys in ((CONFIG, TOKEN_IDS), (GENERATION_CONFIG, None), (TOKENIZER_CONFIG, None)):
        mine, theirs = _json(folder / name), _json(winner / name)
        if mine is None or theirs is None:
            continue
        for key in sorted(mine.keys() | theirs.keys()) if keys is None else keys:
            if key not in PASSING and mine.get(key) != theirs.get(key) and (key in mine or not bare):
                found.append(f"{name} {key} {_shown(mine, key)} (kept: {_shown(theirs, key)})")
    others = _other_files(folder, winner, (GENERATION_CONFIG, *TOKENIZER_PATTERNS))
    return found + [each for each in others if not (bare and each.startswith(ABSENT))]


def _other_files(folder: Path, winner: Path, patterns: tuple[str, ...]) -> list[str]:
    """Files of these patterns that only one of the folders has, or that differ."""
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
    return text if len(text) <= SHOWN else "of other content"
