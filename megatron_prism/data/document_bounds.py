"""Which document each token of a training row belongs to, for training in which documents do not see each other.

The numbers come from the index of the token files and not from end tokens in the text: a rendered chat may have
several end tokens, and a part of a long document has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DOCUMENTS = "documents"


def mark_documents(sample: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """A sample with `documents`, and without loss where a document would predict the first token of the next one.

    Args:
        sample: `tokens`, `loss_mask`, ..., each `[sequence_length]`.
        lengths: of the documents in the `sequence_length + 1` tokens that the sample was made from. Tokens after the
            last document are padding.

    Returns:
        the sample with the number of each input token's document, int32 `[sequence_length]`, from 0 upwards.
    """
    import numpy
    import torch

    size = len(sample["tokens"]) + 1
    numbers = numpy.repeat(numpy.arange(len(lengths)), lengths)[:size]
    numbers = numpy.append(numbers, numpy.full(size - len(numbers), len(lengths)))
    found: torch.Tensor = torch.from_numpy(numbers.astype(numpy.int32))
    inside = found[1:] == found[:-1]
    return sample | {DOCUMENTS: found[:-1].contiguous(), "loss_mask": sample["loss_mask"] * inside}


def blended_documents_class() -> type:
    """Megatron's dataset of joined documents, whose samples also say where the documents are."""
    from megatron.core.datasets.gpt_dataset import GPTDataset

    class GPTDocumentDataset(GPTDataset):
        """The samples of GPTDataset with `documents`."""

        def __getitem__(self, idx: int | None) -> dict[str, Any]:
            # This call loads the three indices.
            sample = super().__getitem__(idx)
            row = self.shuffle_index[0 if idx is None else idx]
            (first, offset), (last, end) = self.sample_index[row], self.sample_index[row + 1]
            # The last token of the sample, a label only, is the first of the next sample (gpt_dataset.py:286).
            if first == last:
                lengths = [int(end) - int(offset) + 1]
            else:
                inner = self.dataset.sequence_lengths[self.document_index[first:last]].tolist()
                inner[0] -= int(offset)
                lengths = [*inner, int(end) + 1]
            return mark_documents(sample, lengths)

    return GPTDocumentDataset
