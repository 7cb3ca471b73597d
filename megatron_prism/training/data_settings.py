"""How a run reads its data; nothing here changes which samples a step has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_prism.pipeline.config import not_negative, positive

# Every prefetched step is kept in memory.
MOST_PREFETCHED = 10_000


@dataclass
class DataSettings:
    """The fields of `data`.

    Attributes:
        prefetch: steps whose batches a background thread reads ahead; 0 reads each batch in its step.
        index_folder: where the indices of a blend are kept while the run lasts. Empty: in the run's folder, which all
            nodes share and rank 0 writes. A path: a folder of each node, such as a local disk, which the process with
            LOCAL_RANK 0 writes.
        index_minutes: how long the other processes wait for the indices.
    """

    prefetch: int = 2
    index_folder: str = ""
    index_minutes: float = 120

    def __post_init__(self) -> None:
        positive(self, "index_minutes", group="data")
        not_negative(self, "prefetch", most=MOST_PREFETCHED, group="data")
        if self.index_folder:
            # Launched workers may run in another working directory.
            self.index_folder = str(Path(self.index_folder).resolve())
