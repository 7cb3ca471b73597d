"""Weighted sampling from token files, through Megatron-Core's blended dataset.

A source that is smaller than its share is read several times, like the reasoning sources in section 3.1 of the paper.
Megatron keeps its sample order in index files. Here each blend has a separate folder for them, whose name is a hash of
everything that determines them. They are used only if the folder has a completion marker, so a process that is
killed while writing leaves nothing that a later process would read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.data.document_bounds import blended_documents_class
from megatron_prism.data.mixture import check_blend, check_sources
from megatron_prism.data.packed_dataset import is_packed, packed_dataset
from megatron_prism.data.rounds import in_rounds
from megatron_prism.data.token_files import token_file_stamp, token_sources
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.platform.waiting import wait_for_all

if TYPE_CHECKING:
    from torch.utils.data import Dataset

COMPLETE = "complete"
# Megatron's default share of extra samples per source, so that no source runs out because of rounding.
SURPLUS = 0.005


@dataclass(frozen=True)
class IndexFolder:
    """Where the index files are, and whether this process writes them.

    Attributes:
        writes: exactly one process per copy of the folder writes: rank 0, or one per node if each node has its own.
        minutes: how long the others wait.
    """

    path: Path
    writes: bool = True
    minutes: float = 120

    @classmethod
    def of(cls, path: Path, *, per_node: bool, minutes: float) -> IndexFolder:
        """A folder that all nodes share, or one of each node, as torchrun's ranks see it."""
        return cls(path, os.environ.get("LOCAL_RANK" if per_node else "RANK", "0") == "0", minutes)


@dataclass(frozen=True)
class _DatasetTokenizer:
    """The part of a tokenizer that Megatron's dataset uses.

    If there is no separate padding token, `pad` is -1, which no file contains: Megatron masks the loss of `pad`.
    """

    vocab_size: int
    eod: int
    eos: int
    pad: int
    unique_identifiers: dict[str, Any]


def training_dataset(
    tokens: Path,
    split: str,
    weights: Mapping[str, float],
    *,
    sequence_length: int,
    num_samples: int,
    round_samples: int,
    seed: int,
    indices: IndexFolder,
    tokenizer: Tokenizer,
    documents: bool = False,
) -> Any:
    """At least `num_samples` samples of a tokens folder: `packed_dataset` if it is packed, else `blended_dataset`.

    Sample i does not depend on `num_samples`, so a run that is prolonged reads what the longer run would have read.
    Token files are read in rounds of `round_samples` (rounds.py).

    The samples are dicts of `tokens`, `labels`, `loss_mask`, `position_ids`, each `[sequence_length]`, in proportion to
    `weights`. `source_counts` accepts both datasets. With `documents` the samples also say where their documents are
    (document_bounds.py). All ranks must call this.
    """
    if is_packed(tokens):
        return packed_dataset(
            tokens,
            split,
            weights,
            sequence_length=sequence_length,
            num_samples=num_samples,
            seed=seed,
            tokenizer=tokenizer,
            documents=documents,
        )

    def build(samples: int, seed: int) -> Any:
        return blended_dataset(
            tokens,
            split,
            weights,
            sequence_length=sequence_length,
            num_samples=samples,
            seed=seed,
            indices=indices,
            tokenizer=tokenizer,
            documents=documents,
        )

    return in_rounds(build, samples=num_samples, round_samples=round_samples, seed=seed)


def blended_dataset(
    tokens: Path,
    split: str,
    weights: Mapping[str, float],
    *,
    sequence_length: int,
    num_samples: int,
    seed: int,
    indices: IndexFolder,
    tokenizer: Tokenizer,
    documents: bool = False,
) -> Dataset[dict[str, Any]]:
    """At least `num_samples` samples from `TOKENS/SPLIT/*.bin` in proportion to `weights`.

    A sample is a dict of `tokens`, `labels` (int64), `loss_mask` (fp32) and `position_ids` (int64), each
    `[sequence_length]`: documents are joined end to end and cut anywhere. The arguments determine the order; `seed`
    shuffles documents and samples within each source.

    If torch.distributed is running, all ranks must call this: those that write the index files do so while the others
    wait.

    Raises:
        ConfigError: for invalid numbers.
        DataError: for a source that is damaged or not in the folder (the nearest name is suggested).
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    check_blend(sequence_length, num_samples, seed, weights)
    sources = token_sources(tokens, split)
    check_sources(weights, sources, str(tokens / split))
    names = list(weights)
    total = math.fsum(weights.values())
    shares = [weights[name] / total for name in names]
    prefixes = [str(sources[name].resolve()) for name in names]
    identity = {
        "files": {prefix: token_file_stamp(prefix) for prefix in prefixes},
        "shares": shares,
        "sequence_length": sequence_length,
        "num_samples": num_samples,
        "seed": seed,
        "eos": tokenizer.eos_id,
    }
    folder = indices.path / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    pad = tokenizer.pad_id if tokenizer.pad_id != tokenizer.eos_id else -1
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=sequence_length,
        # Only the first of Megatron's splits is used, because train/ and valid/ are separate folders here.
        blend_per_split=[(prefixes, shares), None, None],
        path_to_cache=str(folder),
        tokenizer=_DatasetTokenizer(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.eos_id, pad, identity),
        mid_level_dataset_surplus=_surplus(shares, num_samples),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    kind = blended_documents_class() if documents else GPTDataset

    def build(writes: bool) -> Dataset[dict[str, Any]]:
        with _building_alone(writes):
            builder = BlendedMegatronDatasetBuilder(kind, [num_samples, 0, 0], lambda: True, config)
            built: Dataset[dict[str, Any]] = builder.build()[0]
        return built

    with _process_group():
        if indices.writes:
            if folder.exists() and not (folder / COMPLETE).exists():
                shutil.rmtree(folder)
            dataset = build(writes=True)
            (folder / COMPLETE).touch()
        wait_for_all(indices.minutes)
        return dataset if indices.writes else build(writes=False)


def source_counts(dataset: Any, sources: Sequence[str], samples: int) -> dict[str, int]:
    """How many of the first `samples` samples of a blend come from each source.

    Args:
        dataset: the result of `blended_dataset`.
        sources: the names, in the order of its weights.
    """
    import numpy

    if len(sources) == 1:
        return {sources[0]: samples}
    drawn = numpy.bincount(dataset.dataset_index[:samples], minlength=len(sources))
    return {name: int(count) for name, count in zip(sources, drawn, strict=True)}


def _surplus(shares: Sequence[float], num_samples: int) -> float:
    """Extra share of samples, so that no source runs out however few samples are requested.

    Megatron rounds each source up, so the blend of k sources has up to k samples more than requested, and its greedy
    choice may take one more: w k + 1 extra for a source whose share w was rounded to c samples, and w / c <= 1 / n.
    """
    fewest = min(math.ceil(share * num_samples) for share in shares)
    return max(SURPLUS, len(shares) / num_samples + 1 / fewest)


@contextmanager
def _building_alone(writes: bool) -> Iterator[None]:
    """Megatron's builder as the only process, which writes indices, or as one that only reads them.

    Upstream writes on rank 0 only (gpt_dataset.py:444, blended_dataset.py:153), and its other ranks wait in a barrier
    of the default group (blended_megatron_dataset_builder.py:398, 542), over NCCL with a GPU. Here each node may have
    a writer, and `wait_for_all` is the barrier.
    """
    import torch.distributed as dist

    replaced = {"get_rank": lambda group=None: 0 if writes else 1, "barrier": lambda *args, **keywords: None}
    before = {name: getattr(dist, name) for name in replaced}
    for name, function in replaced.items():
        setattr(dist, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


@contextmanager
def _process_group() -> Iterator[None]:
    """A process group of one process if there is none: Megatron's blended index always needs a rank."""
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
