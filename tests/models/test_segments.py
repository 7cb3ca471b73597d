"""Packed texts in one row give the same numbers as alone, dense and hybrid; without segments they do not."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.layers.output_layer import install_vocabulary_limit
from megatron_prism.models.layers.segments import Segments, check_packing, set_segments
from megatron_prism.platform.process_groups import session

VOCABULARY = 50
MODELS = {
    "dense": Architecture("granite", VOCABULARY, 32, 2, 48, 4, 2, 8, max_position_embeddings=64),
    "window": Architecture("mistral", VOCABULARY, 32, 2, 48, 4, 2, 8, max_position_embeddings=64, sliding_window=5),
    "hybrid": Architecture(
        "nemotron_h", VOCABULARY, 32, 4, 48, 4, 2, 8, activation="squared_relu", position_embedding="none",
        hybrid_pattern="M-M*", mamba_num_heads=4, mamba_head_dim=8, mamba_state_dim=8, max_position_embeddings=64,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
LENGTHS = [7, 1, 12, 9]
ROW = 32


@pytest.fixture(autouse=True, scope="module")
def _session():
    with session(seed=3):
        yield


def losses(model, tokens):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model(tokens, positions, None, labels=tokens.roll(-1, 1))


@pytest.mark.parametrize("name", MODELS)
def test_packed_texts_give_the_same_numbers_as_alone(name):
    model = build_model(MODELS[name]).train()
    check_packing(model)
    generator = torch.Generator().manual_seed(1)
    row = torch.randint(0, VOCABULARY, (1, ROW), generator=generator)
    starts = [sum(LENGTHS[:index]) for index in range(len(LENGTHS))]
    texts = [row[:, start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]

    def weights():
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    set_segments(model, Segments(LENGTHS, ROW))
    together = losses(model, row)
    inside = torch.cat([together[0, s : s + n - 1] for s, n in zip(starts, LENGTHS, strict=True)])
    inside.sum().backward()
    packed = weights()
    model.zero_grad()
    set_segments(model, None)
    alone = torch.cat([losses(model, text)[0, :-1] for text in texts])
    alone.sum().backward()
    assert torch.allclose(inside, alone, atol=2e-6)
    assert torch.allclose(packed, weights(), atol=2e-5)
    # Without segments the texts see the texts before them.
    leaking = losses(model, row)
    assert (
        torch.cat([leaking[0, s : s + n - 1] for s, n in zip(starts, LENGTHS, strict=True)]) - alone
    ).abs().max() > 1e-3


def test_the_rest_of_a_row_is_a_separate_text():
    assert Segments([3, 4], 9).lengths == [3, 4, 2]
    row = torch.arange(9.0)[:, None, None]
    segments = Segments([3, 4], 9)
    assert segments.unpack(row)[:, 1, 0].tolist() == [3, 4, 5, 6]
    assert torch.equal(segments.repack(segments.unpack(row)), row)


@pytest.mark.parametrize("lengths", [[5, 6], [0, 3]])
def test_texts_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="row of 10"):
        Segments(lengths, 10)


def test_a_model_that_cannot_separate_texts_is_refused():
    model = build_model(MODELS["hybrid"])
    del model.decoder.layers[0].mixer.segments
    with pytest.raises(ParallelError, match="torch backend"):
        check_packing(model)


def test_padding_rows_of_the_vocabulary_get_no_probability():
    model = build_model(MODELS["dense"])
    tokens = torch.randint(0, 40, (1, 12), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(12)[None]
    with torch.no_grad():
        logits = model(tokens, positions, None)[..., :40].float()
        before = losses(model, tokens)
        install_vocabulary_limit(model.output_layer, 40)
        limited = losses(model, tokens)
    expected = -logits.log_softmax(-1).gather(-1, tokens.roll(-1, 1)[..., None])[..., 0]
    assert torch.allclose(limited, expected, atol=1e-5)
    assert (limited - before).abs().max() > 1e-2
