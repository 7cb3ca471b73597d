"""The layouts of a model: `recipes/layouts/MODEL.yaml` says how a run is spread over GPUs.

A file maps the kind of run (`train` or `rl`), the number of GPUs and the tokens of a row to a layout:

    train:
      8:
        8192: {tensor_model_parallel_size: 2, data_parallel_size: 4, sequence_parallel: true, recompute: none}

An entry has the sizes of `ParallelConfig` that are not 1, `recompute`, and `micro_batch_size` if it is not 1. The
product of its sizes is the number of GPUs under which it stands. A row that is shorter than an entry's takes the layout
of the next longer entry, because what fits a long row fits a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import RECOMPUTE
from megatron_prism.pipeline.config import field_names, flat, from_mapping, one_of, to_mapping
from megatron_prism.pipeline.yaml_file import load_yaml
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.platform.source_tree import recipes_folder

TRAIN, RL = "train", "rl"
# Field of a stage -> tokens of its rows.
ROW = {TRAIN: "batch.sequence_length", RL: "context_length"}


@dataclass(frozen=True)
class Layout:
    """How one run is spread over GPUs.

    Attributes:
        recompute: see `TrainConfig`.
        micro_batch_size: rows that a data-parallel rank works on at once; only `train` runs use it.
    """

    parallel: ParallelConfig
    recompute: str = "none"
    micro_batch_size: int = 1

    def __post_init__(self) -> None:
        one_of(self.recompute, RECOMPUTE, "recompute")
        if type(self.micro_batch_size) is not int or self.micro_batch_size < 1:
            raise ConfigError(
                f"micro_batch_size={self.micro_batch_size!r}: must be a whole number of at least 1"
            )

    def fields(self, kind: str) -> dict[str, Any]:
        """The layout as fields of a stage, by dotted key."""
        sizes = {f"parallel.{key}": value for key, value in to_mapping(self.parallel).items()}
        batch = {"batch.micro_batch_size": self.micro_batch_size} if kind == TRAIN else {}
        return sizes | {"recompute": self.recompute} | batch


@dataclass(frozen=True)
class LayoutTable:
    """All layouts of a model: `entries[kind, gpus, tokens]`."""

    path: Path
    entries: Mapping[tuple[str, int, int], Layout]

    @classmethod
    def load(cls, model: str) -> LayoutTable:
        """The file of the model whose recipe has this name.

        Raises:
            ConfigError: names the file and the entry that is not valid.
        """
        path = recipes_folder() / "layouts" / f"{model}.yaml"
        return cls(path, _read(path, path.stat().st_mtime_ns if path.exists() else 0))

    def gpus(self, kind: str, tokens: int) -> list[int]:
        """The numbers of GPUs that have a layout made for rows of `tokens`, or for shorter ones."""
        return sorted({number for name, number, row in self.entries if name == kind and row <= tokens})

    def find(self, kind: str, gpus: int, tokens: int) -> Layout:
        """The layout for rows of `tokens`, or for the next longer rows.

        Raises:
            ConfigError: names the nearest entries, if there is none.
        """
        rows = sorted(row for name, number, row in self.entries if (name, number) == (kind, gpus))
        longer = [row for row in rows if row >= tokens]
        if longer:
            return self.entries[kind, gpus, longer[0]]
        raise ConfigError(
            f"{self.path}: no layout of kind '{kind}' for {gpus} GPUs and rows of {tokens} tokens; "
            f"nearest: {self._nearest(kind, gpus, tokens)}; choose one of them, or add an entry (docs/recipes.md)"
        )

    def _nearest(self, kind: str, gpus: int, tokens: int) -> str:
        same = [(number, row) for name, number, row in self.entries if name == kind]
        if not same:
            return "none of this kind"
        # Entries that are long enough come first, then those with a similar number of GPUs.
        near = sorted(
            same, key=lambda entry: (entry[1] < tokens, abs(entry[0] - gpus), abs(entry[1] - tokens))
        )
        return ", ".join(f"{number} GPUs and {row} tokens" for number, row in near[:3])


def layout_follows(
    table: LayoutTable, kind: str, gpus: int
) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    """For `Graph.add(name, stage, derive, implied)`: the layout of a stage follows from the length of its rows."""

    def implied(stage: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
        tokens = flat(dict(chosen)).get(ROW[kind], _row(stage, kind))
        if type(tokens) is not int or tokens < 1:
            # The stage itself refuses it, with a better message.
            return {}
        return table.find(kind, gpus, tokens).fields(kind)

    return implied


@lru_cache(maxsize=32)
def _read(path: Path, written: int) -> Mapping[tuple[str, int, int], Layout]:
    """The entries of a file, read again when it is `written` again: a plan makes many graphs of a recipe."""
    return dict(_entries(path, load_yaml(path)))


def _row(stage: Any, kind: str) -> int:
    return int(stage.batch.sequence_length if kind == TRAIN else stage.context_length)


def _entries(path: Path, values: Mapping[str, Any]) -> Any:
    for kind, by_gpus in values.items():
        if kind not in ROW:
            raise ConfigError(f"{path}: unknown kind of run '{kind}'; known: {', '.join(ROW)}")
        for gpus, by_tokens in _numbered(path, kind, by_gpus):
            for tokens, entry in _numbered(path, f"{kind}.{gpus}", by_tokens):
                yield (kind, gpus, tokens), _layout(f"{path}: {kind}.{gpus}.{tokens}", entry, gpus)


def _numbered(path: Path, where: str, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {where}: expected NUMBER: ... lines, found {type(values).__name__}")
    for key, value in values.items():
        if type(key) is not int or key < 1:
            raise ConfigError(f"{path}: {where}: '{key}' must be a whole number of at least 1")
        yield key, value


def _layout(where: str, entry: Any, gpus: int) -> Layout:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected sizes such as {{data_parallel_size: 8}}, found {entry!r}")
    own = {key: entry[key] for key in entry if key not in field_names(Layout)}
    rest = {key: entry[key] for key in entry if key in field_names(Layout)}
    parallel = from_mapping(ParallelConfig, own, where)
    try:
        layout = Layout(parallel, **rest)
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from None
    if layout.parallel.world_size != gpus:
        raise ConfigError(f"{where}: the product of the sizes is {layout.parallel.world_size}, not {gpus}")
    return layout
