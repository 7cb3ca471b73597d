"""Documents in a row give the same numbers as alone, dense and hybrid; without `RowDocuments` they do not."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.layers.output_layer import install_vocabulary_limit
from megatron_prism.models.layers.row_documents import RowDocuments, thd_parameters
from megatron_prism.models.layers.segments import Segments
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
# The last three tokens of the second row are a document that is not listed.
LENGTHS = [[7, 1, 12, 9, 3], [16, 2, 8, 3]]
ROW = 32


@pytest.fixture(autouse=True, scope="module")
def _session():
    with session(seed=3):
        yield


@pytest.fixture
def rows():
    return torch.randint(0, VOCABULARY, (2, ROW), generator=torch.Generator().manual_seed(1))


def losses(model, tokens, documents=None):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model(tokens, positions, None, labels=tokens.roll(-1, 1), packed_seq_params=documents)


def pieces(rows):
    """The documents of all rows: row, start and length."""
    starts = [[sum(each[:number]) for number in range(len(each))] for each in LENGTHS]
    return [
        (row, start, length)
        for row in range(len(rows))
        for start, length in zip(starts[row], LENGTHS[row], strict=True)
    ]


def inside(found, rows):
    """The losses that a document has when it is alone: all but that of its last token."""
    return torch.cat([found[row, start : start + length - 1] for row, start, length in pieces(rows)])


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_documents_give_the_same_numbers_as_alone(name, recompute, rows):
    model = build_model(MODELS[name], recompute=recompute).train()
    together = inside(losses(model, rows, RowDocuments(LENGTHS, ROW)), rows)
    together.sum().backward()
    packed = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    alone = torch.cat([losses(model, rows[r : r + 1, s : s + n])[0, :-1] for r, s, n in pieces(rows)])
    alone.sum().backward()
    assert torch.allclose(together, alone, atol=2e-6)
    assert torch.allclose(packed, torch.cat([p.grad.flatten() for p in model.parameters()]), atol=2e-5)
    assert (inside(losses(model, rows), rows) - alone).abs().max() > 1e-3, "rows of one text see everything"


@pytest.mark.parametrize("name", MODELS)
def test_a_changed_token_reaches_the_next_document_only_without_documents(name, rows):
    model = build_model(MODELS[name]).eval()
    changed = rows.clone()
    # A token of the third document. The fourth starts at 20.
    changed[0, 19] = (changed[0, 19] + 1) % VOCABULARY
    documents = RowDocuments(LENGTHS, ROW)
    with torch.no_grad():
        separate = losses(model, rows, documents)[0, 20:31] - losses(model, changed, documents)[0, 20:31]
        joined = losses(model, rows)[0, 20:31] - losses(model, changed)[0, 20:31]
    assert not separate.any()
    assert joined.abs().max() > 1e-3


def test_rows_of_one_document_are_computed_as_they_are(rows):
    model = build_model(MODELS["dense"]).eval()
    with torch.no_grad():
        assert torch.equal(losses(model, rows, RowDocuments([[ROW], [ROW]], ROW)), losses(model, rows))


def test_the_rest_of_a_row_is_one_more_document():
    documents = RowDocuments([[3, 4]], 9)
    assert documents.lengths == [[3, 4, 2]]
    assert documents.starts.tolist() == [[0, 0, 0, 3, 3, 3, 3, 7, 7]]
    assert RowDocuments.from_numbers(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])).lengths == documents.lengths


def test_every_document_is_computed_once_and_put_back():
    lengths = [[1, 5, 2, 8], [3, 13]]
    row = torch.arange(32.0).view(16, 2, 1)
    seen = []

    def record(batch):
        seen.extend(batch[:, number, 0].tolist() for number in range(batch.shape[1]))
        return batch + 100

    assert torch.equal(RowDocuments(lengths, 16).apply(record, row), row + 100)
    # A padded document repeats its last token.
    found = {tuple(sorted(set(each))) for each in seen}
    expected = set()
    for column, each in enumerate(lengths):
        starts = [sum(each[:number]) for number in range(len(each))]
        expected |= {tuple(row[s : s + n, column, 0].tolist()) for s, n in zip(starts, each, strict=True)}
    assert found == expected


@pytest.mark.parametrize(
    "lengths",
    [[4096, *[20] * 204], [1] * 8192, [8192 >> shift for shift in range(1, 14)], [5000, 3000, *[1] * 100]],
)
def test_padding_is_less_than_the_tokens_of_the_rows(lengths):
    documents = RowDocuments([lengths], 8192)
    assert documents.padded_tokens < 2 * 8192
    # One padded batch would hold this many.
    assert max(lengths) * len(lengths) >= documents.padded_tokens


def test_transformer_engine_gets_the_same_documents():
    parameters = thd_parameters(RowDocuments([[3, 4], [9]], 9))
    assert parameters.qkv_format == "thd"
    assert parameters.cu_seqlens_q.tolist() == parameters.cu_seqlens_kv.tolist() == [0, 3, 7, 9, 18]
    assert parameters.cu_seqlens_q.dtype == torch.int32
    assert parameters.max_seqlen_q == parameters.max_seqlen_kv == 9


def test_other_parameters_of_packed_sequences_are_refused(rows):
    model = build_model(MODELS["hybrid"])
    with pytest.raises(ValueError, match="RowDocuments"):
        losses(model, rows[:1], thd_parameters(RowDocuments([[5]], ROW)))


def test_the_rest_of_a_prompt_row_is_a_separate_text():
    assert Segments([3, 4], 9).lengths == [3, 4, 2]
    row = torch.arange(9.0)[:, None, None]
    segments = Segments([3, 4], 9)
    assert segments.unpack(row)[:, 1, 0].tolist() == [3, 4, 5, 6]
    assert torch.equal(segments.repack(segments.unpack(row)), row)


@pytest.mark.parametrize("lengths", [[5, 6], [0, 3]])
def test_texts_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="row of 10"):
        Segments(lengths, 10)
    with pytest.raises(ValueError, match="row of 10"):
        RowDocuments([lengths], 10)


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
