"""Training samples from packed sequences: each sample is one sequence, and sources are blended by weight.

A sequence of `sequence_length + 1` tokens gives `sequence_length` inputs and labels, shifted by one token, like
Megatron's samples. A shorter sequence is padded at its end. The padding has no loss, and no token sees it, because
attention is causal. Without `documents` each document sees those before it in its sequence; position ids always
continue.

The arguments determine the samples. Sample i does not depend on the number of samples, so a resumed or longer run
continues where the previous one stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.data.document_bounds import mark_documents
from megatron_prism.data.mixture import check_blend, check_sources
from megatron_prism.data.token_files import TokenFile, token_sources
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.json_text import read_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import int16, int64
    from numpy.typing import NDArray

PACKING = "packing.json"
REMEDY = "pack the documents again"


class PackedDataset:
    """Samples of blended packed sequences; `packed_dataset` creates it.

    Attributes:
        dataset_index: `[samples]`, the source of each sample, as its index in the weights.
    """

    def __init__(
        self,
        *,
        sources: Sequence[TokenFile],
        dataset_index: NDArray[int16],
        sequence_index: NDArray[int64],
        sequence_length: int,
        pad_id: int,
        documents: bool = False,
    ) -> None:
        self.dataset_index = dataset_index
        self._documents = documents
        self._sources, self._sequence_index = sources, sequence_index
        self._sequence_length, self._pad_id = sequence_length, pad_id

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`tokens`, `labels`, `position_ids` (int64) and `loss_mask` (fp32), each `[sequence_length]`.

        With `dataset_id`, the number of its source; with documents also what `mark_documents` adds.
        """
        import torch

        length = self._sequence_length
        source, number = self._sources[self.dataset_index[index]], int(self._sequence_index[index])
        sequence = source.document(number)
        row = torch.full((length + 1,), self._pad_id, dtype=torch.int64)
        row[: len(sequence)] = torch.from_numpy(sequence.astype("int64"))
        positions = torch.arange(length)
        sample = {
            "tokens": row[:-1],
            "labels": row[1:],
            "loss_mask": (positions < len(sequence) - 1).float(),
            "position_ids": positions,
            "dataset_id": int(self.dataset_index[index]),
        }
        return mark_documents(sample, source.chunk_lengths(number)) if self._documents else sample


def packed_dataset(
    packed: Path,
    split: str,
    weights: Mapping[str, float],
    *,
    sequence_length: int,
    num_samples: int,
    seed: int,
    tokenizer: Tokenizer,
    documents: bool = False,
) -> PackedDataset:
    """`num_samples` samples from `PACKED/SPLIT`, in proportion to `weights`.

    `seed` determines the order within each source, which is shuffled again for each epoch. Every rank computes the same
    order. With `documents` the samples say where their documents are (document_bounds.py).

    Raises:
        ConfigError: for invalid numbers, or a sequence length that is not that of the packing.
        DataError: for a source that is damaged or not in the folder (the nearest name is suggested).
    """
    import numpy
    from megatron.core.datasets.helpers import build_blending_indices

    check_blend(sequence_length, num_samples, seed, weights)
    packed_length = packed_sequence_length(packed)
    if packed_length != sequence_length:
        raise ConfigError(
            f"{packed}: packed with sequence_length={packed_length}, but sequence_length={sequence_length} is "
            "used (batch.sequence_length of a train stage); make the two equal"
        )
    prefixes = token_sources(packed, split)
    check_sources(weights, prefixes, str(packed / split))
    sources = [_open(prefixes[name], sequence_length) for name in weights]
    total = math.fsum(weights.values())
    shares = numpy.array([weight / total for weight in weights.values()])
    dataset_index = numpy.zeros(num_samples, numpy.int16)
    # Megatron's rule: each sample comes from the source that is furthest below its share.
    build_blending_indices(
        dataset_index, numpy.zeros(num_samples, numpy.int64), shares, len(sources), num_samples, False
    )
    sequence_index = numpy.zeros(num_samples, numpy.int64)
    for number, (name, source) in enumerate(zip(weights, sources, strict=True)):
        of_source = dataset_index == number
        sequence_index[of_source] = _order(len(source.lengths), int(of_source.sum()), seed, name)
    return PackedDataset(
        sources=sources,
        dataset_index=dataset_index,
        sequence_index=sequence_index,
        sequence_length=sequence_length,
        pad_id=tokenizer.pad_id,
        documents=documents,
    )


def is_packed(tokens: Path) -> bool:
    """Whether a folder of token files contains packed sequences."""
    return (tokens / PACKING).is_file()


def packed_sequence_length(packed: Path) -> int:
    """The sequence length that a folder was packed for.

    Raises:
        DataError: if its `packing.json` is damaged.
    """
    try:
        length = read_object(packed / PACKING).get("sequence_length")
    except DataError as problem:
        raise DataError(f"{problem}; {REMEDY}") from None
    if not isinstance(length, int) or length < 1:
        raise DataError(f"{packed / PACKING}: sequence_length={length!r} is not a length; {REMEDY}")
    return length


def _open(prefix: Path, sequence_length: int) -> TokenFile:
    source = TokenFile.open(prefix, REMEDY)
    shortest, longest = int(source.lengths.min()), int(source.lengths.max())
    if shortest < 2 or longest > sequence_length + 1:
        raise DataError(
            f"{prefix}.idx: sequences of {shortest} to {longest} tokens, but with sequence_length={sequence_length} "
            f"they must have 2 to {sequence_length + 1}; {REMEDY}"
        )
    return source


def _order(sequences: int, samples: int, seed: int, source: str) -> NDArray[int64]:
    """Sequence numbers for the samples of a source, `[samples]`: one random permutation per epoch."""
    import numpy

    # RandomState never changes, but a Generator may change with numpy; a resumed run needs the same order.
    name = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "little")
    epochs = [
        numpy.random.RandomState([seed, name, epoch]).permutation(sequences)
        for epoch in range(-(-samples // sequences))
    ]
    return numpy.concatenate([*epochs, numpy.zeros(0, numpy.int64)])[:samples]
