"""The training set of a run's mixture with its batches read ahead, and the validation set of each source."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megatron_prism.data.blend import IndexFolder, training_dataset
from megatron_prism.data.mixture import Mixture
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.pipeline.artifact import RESUME
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.micro_batches import RankShare
from megatron_prism.training.prefetch import Prefetcher

INDEX_CACHE = "index_cache"


class TextData:
    """What a run reads. All ranks make one; `close` it at the end.

    Attributes:
        training: the samples of the mixture.
        sources: names of the mixture's sources; `dataset_id` of a sample counts them.
        validation: source -> dataset.
        retained: the same for the sources of `watch`.
    """

    def __init__(
        self, config: TrainConfig, share: RankShare, *, tokens: Path, tokenizer: Tokenizer, out: Path
    ) -> None:
        settings, batch = config.data, config.batch
        weights = Mixture.load(config.mixture).weights
        self.sources = list(weights)
        per_node = bool(settings.index_folder)
        # Runs that share a node's folder have different names.
        self.folder = Path(settings.index_folder) / out.name if per_node else out / RESUME / INDEX_CACHE
        self._indices = IndexFolder.of(self.folder, per_node=per_node, minutes=settings.index_minutes)

        def dataset(split: str, shares: Mapping[str, float], samples: int, round_samples: int) -> Any:
            return training_dataset(
                tokens,
                split,
                shares,
                sequence_length=batch.sequence_length,
                num_samples=samples,
                round_samples=round_samples,
                seed=config.seed,
                indices=self._indices,
                tokenizer=tokenizer,
                documents=config.intra_document,
            )

        total = batch.samples(config.steps)
        self.training = dataset("train", weights, total, batch.samples(config.schedule.length(config.steps)))
        held_out = config.validation_batches * batch.global_batch_size
        self.validation = {source: dataset("valid", {source: 1.0}, held_out, held_out) for source in weights}

        watched = config.watch.batches * batch.global_batch_size
        self.retained = {
            source: dataset("valid", {source: 1.0}, watched, watched) for source in config.watch.sources
        }

        def following(consumed: int) -> int | None:
            after = consumed + batch.size_after(consumed)
            return after if after < total else None

        self._batches: Prefetcher[list[dict[str, Tensor]]] = Prefetcher(
            lambda consumed: share.read(self.training, consumed, batch.size_after(consumed)),
            following,
            settings.prefetch,
        )

    def batch(self, consumed_samples: int) -> list[dict[str, Tensor]]:
        """This rank's micro-batches of the step that follows `consumed_samples`."""
        return self._batches.take(consumed_samples)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._batches.close()

    def remove_indices(self) -> None:
        """Delete the index files; all ranks call it when none reads any more."""
        dist.barrier()
        if self._indices.writes:
            shutil.rmtree(self.folder, ignore_errors=True)
