"""Opens an engine on one point of a landscape after the other, and never keeps a second copy of a model on disk.

Engine 'megatron' is opened once: its model's weights are replaced in memory. The others load a folder, so a point that
is not one of the given models is merged into a temporary one, which is removed after its evaluation.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from megatron_prism.analysis.landscape.points import Point
from megatron_prism.conversion.init_from_hf import fill_weights
from megatron_prism.conversion.weights import Weights, open_weights
from megatron_prism.generation.engine import Engine
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.merging.in_memory import MemoryMerge
from megatron_prism.merging.merge import merge, plan_merge
from megatron_prism.merging.settings import MergeSettings
from megatron_prism.models.mappings import Rule
from megatron_prism.platform.process_groups import ParallelConfig

MERGED = "merged"


@dataclass
class LandscapeEngine(AbstractContextManager["LandscapeEngine"]):
    """The engine of a landscape.

    Attributes:
        folders: of base, mid-trained and RL model, or of base and one other.
        work: a folder for temporary files.
        dtype: of the merged weights before the engine loads them; None: of each tensor that of the first model.
    """

    config: EngineConfig
    folders: Sequence[Path]
    tokenizer: Path
    batch_size: int
    work: Path
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._running: tuple[MegatronEngine, MemoryMerge, Weights] | None = None

    def __enter__(self) -> LandscapeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = None
        self._stack.__exit__(kind, error, trace)

    @contextmanager
    def at(self, point: Point) -> Iterator[Engine]:
        """The engine with the weights of a point."""
        if self.config.name == "megatron":
            yield self._in_memory(point)
            return
        given = point.given(len(self.folders))
        folder = self.work / MERGED if given is None else self.folders[given]
        if given is None:
            self._merge(point, folder)
        with self._open(folder) as engine:
            yield engine
        if given is None:
            shutil.rmtree(folder)

    def _open(self, folder: Path) -> AbstractContextManager[Engine]:
        return self.config.open(
            model=folder,
            tokenizer=self.tokenizer,
            batch_size=self.batch_size,
            work=self.work,
            parallel=self.parallel,
        )

    def _in_memory(self, point: Point) -> MegatronEngine:
        if self._running is None:
            engine = self._stack.enter_context(self._open(self.folders[0]))
            assert isinstance(engine, MegatronEngine), "the config has this name"
            models = [open_weights(folder) for folder in self.folders]
            source = self._stack.enter_context(MemoryMerge(models, self.dtype))
            self._running = engine, source, models[0]
        engine, source, first = self._running
        last: tuple[Rule, Tensor] | None = None
        with source.combine(point.weights(len(self.folders))) as combination:

            def read(rule: Rule, row: int, rows: int, columns: tuple[slice, ...]) -> Tensor:
                nonlocal last
                if last is None or last[0] is not rule:
                    last = rule, rule.to_megatron(combination.tensors(rule.hf), first.architecture)
                return last[1][(slice(row, row + rows), *columns)]

            fill_weights(engine.models, first.architecture, read)
        return engine

    def _merge(self, point: Point, folder: Path) -> None:
        base, *others = self.folders
        interpolated = len(others) == 2
        settings = MergeSettings(
            method="interpolate" if interpolated else "task-arithmetic",
            weights=[point.a, point.b] if interpolated else [point.a],
        )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        merge(plan_merge(settings, others, base=base, dtype=self.dtype), folder)
