"""The weights of a model folder of either kind, Megatron's or Hugging Face's, as the same Hugging Face tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_prism.conversion.config_json import dtype_remarks
from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.hf_folder.expected_tensors import check_tensors
from megatron_prism.conversion.hf_folder.extra_tensors import HEAD, check_head, drop_frequencies, drop_head
from megatron_prism.conversion.hf_folder.reader import HFFolder
from megatron_prism.conversion.torch_dist.layout import TensorSlice, tensor_slices
from megatron_prism.conversion.torch_dist.reader import CheckpointReader
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config, hf_shapes, parameter_map
from megatron_prism.models.mappings import VOCABULARY, Rule, Shape
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, CONFIG, HF_FILES, INDEX


class Weights(Protocol):
    """A model's Hugging Face tensors, in a folder of either kind."""

    path: Path
    architecture: Architecture
    files: Path | None
    # Messages for the user about the folder, one line each.
    remarks: list[str]

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]: ...

    def tensor(self, name: str) -> Tensor:
        """A whole tensor. It may be a view that is valid until `release`."""
        ...

    def ranges(self, name: str) -> list[FileRange] | None:
        """The file ranges of a whole tensor, in order; None if it is not stored row by row."""
        ...

    def release(self) -> None:
        """Free the data read so far. Called between groups of tensors."""
        ...


class HFWeights(HFFolder):
    """A Hugging Face folder whose tensors are exactly those that its config.json needs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config, remarks = self.config(), list[str]()
        try:
            self.architecture = architecture_from_config(config, remarks)
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
            # If there are two sets of weights, the one that was not read may be the right one.
            hint = "".join(f" ({each})" for each in self.remarks if INDEX in each)
            raise CheckpointError(f"{problem}{hint}") from None
        remarks += dtype_remarks(config, self.main_dtype)
        self.remarks += [f"{self.path}/{each}" for each in remarks]

    @property
    def main_dtype(self) -> torch.dtype:
        """The dtype of the embedding, the first tensor: the dtype that config.json names."""
        return self.stored[next(iter(hf_shapes(self.architecture)))].dtype

    def release(self) -> None:
        pass


class MegatronWeights:
    """A Megatron folder's checkpoint, read as Hugging Face tensors.

    Args:
        architecture: by default that of the folder's architecture.json.
        reader: of another checkpoint, or of other tensors under the same keys; by default of the folder's checkpoint.
    """

    def __init__(
        self, folder: Path, architecture: Architecture | None = None, reader: CheckpointReader | None = None
    ) -> None:
        self.path = Path(folder)
        self.remarks: list[str] = []
        self.architecture = architecture or Architecture.load(self.path / ARCHITECTURE)
        self.files = self.path / HF_FILES if (self.path / HF_FILES).is_dir() else None
        self.reader = reader or CheckpointReader(self.path / CHECKPOINT)
        self._rules: dict[str, tuple[Rule, int, list[TensorSlice]]] = {}
        for rule in parameter_map(self.architecture):
            where = tensor_slices(rule, self.architecture)
            self._check(rule, where)
            for part, name in enumerate(rule.hf):
                self._rules[name] = (rule, part, where)
        self.shapes: dict[str, Shape] = hf_shapes(self.architecture)
        self.dtypes = {name: self.reader.dtype(where[0].key) for name, (_, _, where) in self._rules.items()}

    def _check(self, rule: Rule, where: list[TensorSlice]) -> None:
        shape = rule.megatron_shape(self.architecture)
        for tensor_slice in where:
            found = self.reader.shape(tensor_slice.key)
            found = found[1:] if tensor_slice.layer is not None else found
            wanted = tensor_slice.shape(shape)
            # The vocabulary may be padded to divide over tensor-parallel ranks.
            longer = found[0] > wanted[0] and rule.layout is VOCABULARY
            if found[1:] != wanted[1:] or (found[0] != wanted[0] and not longer):
                raise CheckpointError(
                    f"{self.path / CHECKPOINT}: tensor '{tensor_slice.key}' has shape {list(found)}, "
                    f"but {ARCHITECTURE} needs {list(wanted)}"
                )

    def tensor(self, name: str) -> Tensor:
        pieces = [
            self.reader.rows(tensor_slice.key, tensor_slice.layer, row, count)
            for tensor_slice, row, count in self._rows(name)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def ranges(self, name: str) -> list[FileRange] | None:
        found: list[FileRange] = []
        for tensor_slice, row, count in self._rows(name):
            part = self.reader.ranges(tensor_slice.key, tensor_slice.layer, row, count)
            if part is None:
                return None
            found += part
        return found

    def _rows(self, name: str) -> Iterator[tuple[TensorSlice, int, int]]:
        """The rows of stored tensors that make up a Hugging Face tensor, in order: (slice, first row in it, count)."""
        rule, part, where = self._rules[name]
        blocks = sorted(rule.layout.row_blocks(self.architecture), key=lambda block: block.hf_row)
        for block in blocks:
            for tensor_slice in where if block.part == part else ():
                first = max(block.megatron_row, tensor_slice.row)
                last = min(block.megatron_row + block.rows, tensor_slice.row + tensor_slice.rows)
                if first < last:
                    yield tensor_slice, first - tensor_slice.row, last - first

    def release(self) -> None:
        self.reader.release()


def open_weights(folder: Path) -> HFWeights | MegatronWeights:
    """The weights of a folder of either kind. A CheckpointError if it is neither."""
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
