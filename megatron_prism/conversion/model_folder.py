"""The two kinds of folder a model lies in, seen as the same Hugging Face tensors.

A Megatron folder (what training and `prism convert import` leave) holds `architecture.json`, the `checkpoint`, and
`hf/` with the config, generation config and tokenizer that came with the weights, if they did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_prism.conversion.dist_layout import Place, places
from megatron_prism.conversion.dist_read import CheckpointReader
from megatron_prism.conversion.extra_tensors import HEAD, check_head, drop_frequencies, drop_head
from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.safetensors_io import CONFIG, HFFolder, check_tensors, read_json
from megatron_prism.conversion.weight_files import INDEX
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config, hf_config, hf_shapes, parameter_map
from megatron_prism.models.mappings import VOCABULARY, Rule, Shape
from megatron_prism.models.rope import RopeScaling
from megatron_prism.models.rope_config import ROPE_KEYS
from megatron_prism.pipeline.artifact import write_json

# transformers 5 reads the first and falls back to the second; before 4.56 only the second was read.
DTYPE_KEYS = ("dtype", "torch_dtype")
ARCHITECTURE, CHECKPOINT, HF_FILES = "architecture.json", "checkpoint", "hf"


class Weights(Protocol):
    """A model's Hugging Face tensors, wherever they lie."""

    path: Path
    architecture: Architecture
    files: Path | None
    # What a user should hear about the folder, one line each.
    remarks: list[str]

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]: ...

    def tensor(self, name: str) -> Tensor:
        """A whole tensor; it may be a view that lives until `release`."""
        ...

    def ranges(self, name: str) -> list[FileRange] | None:
        """Where the bytes of a whole tensor lie, in order; None where they do not lie row by row."""
        ...

    def release(self) -> None:
        """Called between groups of tensors: what was read may be forgotten."""
        ...


class HFWeights(HFFolder):
    """A Hugging Face folder whose tensors are exactly those its config.json calls for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config, said = self.config(), list[str]()
        try:
            self.architecture = architecture_from_config(config, said)
        except ConfigError as problem:
            raise ConfigError(f"{self.path}/{problem}") from None
        self.files: Path | None = self.path
        expected = hf_shapes(self.architecture)
        family = self.architecture.family
        if HEAD not in expected:
            embedding, rows = next(iter(expected.items()))
            drop_head(self, embedding, rows)
        self.remarks += drop_frequencies(self, self.architecture, expected)
        check_head(self.path, expected, self.shapes)
        try:
            check_tensors(self.shapes, expected, str(self.path), family)
        except CheckpointError as problem:
            # The set that was not read may be the one that fits.
            hint = "".join(f" ({each})" for each in self.remarks if INDEX in each)
            raise CheckpointError(f"{problem}{hint}") from None
        said += dtype_remarks(config, self.main_dtype)
        self.remarks += [f"{self.path}/{each}" for each in said]

    @property
    def main_dtype(self) -> torch.dtype:
        """The dtype of the embedding, which comes first: what a config.json names."""
        return self.stored[next(iter(hf_shapes(self.architecture)))].dtype

    def release(self) -> None:
        pass


class MegatronWeights:
    """A Megatron folder's checkpoint, read as Hugging Face tensors."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder)
        self.remarks: list[str] = []
        self.architecture = Architecture.load(self.path / ARCHITECTURE)
        self.files = self.path / HF_FILES if (self.path / HF_FILES).is_dir() else None
        self.reader = CheckpointReader(self.path / CHECKPOINT)
        self._rules: dict[str, tuple[Rule, int, list[Place]]] = {}
        for rule in parameter_map(self.architecture):
            where = places(rule, self.architecture)
            self._check(rule, where)
            for part, name in enumerate(rule.hf):
                self._rules[name] = (rule, part, where)
        self.shapes: dict[str, Shape] = hf_shapes(self.architecture)
        self.dtypes = {name: self.reader.dtype(where[0].key) for name, (_, _, where) in self._rules.items()}

    def _check(self, rule: Rule, where: list[Place]) -> None:
        shape = rule.megatron_shape(self.architecture)
        for place in where:
            found = self.reader.shape(place.key)
            found = found[1:] if place.layer is not None else found
            wanted = place.shape(shape)
            # The vocabulary may be padded to divide over tensor-parallel ranks.
            longer = found[0] > wanted[0] and rule.layout is VOCABULARY
            if found[1:] != wanted[1:] or (found[0] != wanted[0] and not longer):
                raise CheckpointError(
                    f"{self.path / CHECKPOINT}: tensor '{place.key}' has shape {list(found)}, "
                    f"{ARCHITECTURE} says {list(wanted)}"
                )

    def tensor(self, name: str) -> Tensor:
        pieces = [
            self.reader.rows(place.key, place.layer, row, count) for place, row, count in self._rows(name)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def ranges(self, name: str) -> list[FileRange] | None:
        found: list[FileRange] = []
        for place, row, count in self._rows(name):
            part = self.reader.ranges(place.key, place.layer, row, count)
            if part is None:
                return None
            found += part
        return found

    def _rows(self, name: str) -> Iterator[tuple[Place, int, int]]:
        """The rows of stored tensors that make up a Hugging Face tensor: (where, first row, how many), in order."""
        rule, part, where = self._rules[name]
        runs = sorted(rule.layout.runs(self.architecture), key=lambda run: run.hf_row)
        for run in runs:
            for place in where if run.part == part else ():
                first = max(run.megatron_row, place.row)
                last = min(run.megatron_row + run.rows, place.row + place.rows)
                if first < last:
                    yield place, first - place.row, last - first

    def release(self) -> None:
        self.reader.release()


def open_weights(folder: Path) -> HFWeights | MegatronWeights:
    """The weights in a folder of either kind; a CheckpointError if it is neither."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if (folder / ARCHITECTURE).is_file():
        return MegatronWeights(folder)
    if (folder / CONFIG).is_file():
        return HFWeights(folder)
    raise CheckpointError(
        f"{folder}: neither a Megatron folder ({ARCHITECTURE}) nor a Hugging Face one ({CONFIG})"
    )


def write_config(
    folder: Path, architecture: Architecture, dtype: torch.dtype, extra: Mapping[str, Any]
) -> None:
    """Write `folder/config.json` for these weights.

    A config that is already there (carried over from the imported model) stays as it came, but for the keys in which
    the architecture has changed since, and its dtype. Otherwise it is made from the architecture and `extra`.
    """
    path, name = folder / CONFIG, str(dtype).removeprefix("torch.")
    if not path.is_file():
        write_json(path, {**hf_config(architecture), **extra, **dict.fromkeys(DTYPE_KEYS, name)})
        return
    carried = read_json(path)
    config = updated_config(carried, architecture)
    if any(config.get(key) not in (name, None) for key in DTYPE_KEYS):
        config |= dict.fromkeys(DTYPE_KEYS, name)
    if config != carried:
        write_json(path, config)


def dtype_remarks(config: Mapping[str, Any], dtype: torch.dtype) -> list[str]:
    """A line where a config names two dtypes, or another one than the tensors'; they keep their own in any case."""
    first, second = (_dtype_name(config.get(key)) for key in DTYPE_KEYS)
    named, found = first or second, _dtype_name(str(dtype))
    if first is None or second is None or first == second:
        if named in (None, found):
            return []
        return [
            f"config.json: dtype={named!r}, but the tensors are {found}: transformers would convert them; here they "
            f"keep the dtype they have, and a config.json that is written for them says {found}"
        ]
    return [
        f"config.json: dtype={first!r} and torch_dtype={second!r} differ: transformers 5 takes the first, and before "
        "4.56 the second; the tensors keep the dtype they have"
    ]


def _dtype_name(value: Any) -> Any:
    """'bfloat16' also for 'torch.bfloat16', which older programs wrote."""
    return value.removeprefix("torch.") if isinstance(value, str) else value


def updated_config(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """`config` with the keys changed in which `architecture` differs from the one it describes.

    Rotary settings change together: each spelling that stays would contradict the others, or be the only one that
    another version of transformers reads.
    """
    before = architecture_from_config(config)
    old, new = hf_config(before), hf_config(architecture)
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    made = {**config, **changed}
    # A number that a spelling leaves out may follow from a key that changed.
    wanted = _rope(architecture)
    if _rope(before) != wanted or _rope(architecture_from_config(made)) != wanted:
        made = {key: value for key, value in made.items() if key not in ROPE_KEYS}
        made |= {key: new[key] for key in ROPE_KEYS if key in new}
    return made


def _rope(architecture: Architecture) -> tuple[float, RopeScaling | None]:
    return architecture.rope_theta, architecture.rope_scaling
