"""What each backend gets for `intra_document`, and the layouts that Transformer Engine cannot do."""

from __future__ import annotations

import pytest
import torch
from megatron.core.ssm import mamba_mixer

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models import specs_te
from megatron_prism.models.layers.row_documents import RowDocuments
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.intra_document import PACKED, check_intra_document, place_documents

NUMBERS = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.int32)
BATCH = {"tokens": torch.arange(8).view(2, 4), "labels": torch.arange(8).view(2, 4) + 1}


def test_the_torch_backend_keeps_rows():
    placed = place_documents(BATCH, NUMBERS, "torch")
    assert torch.equal(placed["tokens"], BATCH["tokens"])
    assert isinstance(placed[PACKED], RowDocuments)
    assert placed[PACKED].lengths == [[2, 2], [1, 3]]
    assert place_documents(BATCH, None, "torch") == BATCH


def test_transformer_engine_gets_one_row():
    placed = place_documents(BATCH, NUMBERS, "te")
    assert placed["tokens"].tolist() == [list(range(8))]
    assert placed["labels"].tolist() == [list(range(1, 9))]
    assert placed[PACKED].qkv_format == "thd"
    assert placed[PACKED].cu_seqlens_q.tolist() == [0, 2, 4, 5, 8]


def test_what_transformer_engine_cannot_do_is_refused(monkeypatch):
    halves = ParallelConfig(context_parallel_size=2)
    check_intra_document("torch", True, halves)
    check_intra_document("te", False, ParallelConfig())
    with pytest.raises(
        ParallelError, match=r"intra_document=true, backend=te, context_parallel_size=2.*torch"
    ):
        check_intra_document("te", False, halves)
    with pytest.raises(ConfigError, match="backend=te: no CUDA GPU"):
        check_intra_document("te", True, ParallelConfig())
    # A machine with an old causal_conv1d: upstream would stop at the first step, with an assertion.
    monkeypatch.setattr(specs_te, "require", lambda hybrid: None)
    monkeypatch.setattr(mamba_mixer, "is_causal_conv1d_min_version", lambda version: False)
    with pytest.raises(
        ConfigError, match=r"causal_conv1d >= 1\.4\.0 is required; upgrade it, or use backend=torch"
    ):
        check_intra_document("te", True, ParallelConfig())
