"""Mean hidden states: Megatron's against transformers' own, at every point, for dense models and hybrids."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCABULARY, make_checkpoint
from transformers import AutoModelForCausalLM

from megatron_prism.analysis.cka.pooled_states import open_model, points_of
from megatron_prism.conversion.import_hf import import_checkpoint

# Of different lengths, one of them a single token.
ROWS = [
    torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 17, 40)
]


def of_transformers(folder, rows, dtype=torch.float32, **changes):
    """`[rows, points of hidden_states, hidden]` from transformers' `output_hidden_states`, without our hooks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **changes).eval()
    with torch.no_grad():
        states = [
            model(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
            for row in rows
        ]
    return torch.stack([torch.stack([each[0].float().mean(dim=0) for each in row]) for row in states])


def pooled(folder, engine, dtype=torch.float32, rows=ROWS):
    with open_model(folder, engine, dtype) as model:
        return model.pooled(rows), model.layers


def difference(first, second):
    """The largest difference of any point, as a share of its largest state."""
    scale = second.abs().amax(dim=(0, 2))
    return float(((first - second).abs().amax(dim=(0, 2)) / scale).max())


@pytest.mark.parametrize("name", ["granite", "granite-h", "nemotron-h"])
def test_megatron_and_transformers_have_the_same_states_at_every_point(name, tmp_path):
    folder = make_checkpoint(name, tmp_path / "hf")
    changes = {"time_step_min": 1e-30} if name == "nemotron-h" else {}
    reference = of_transformers(folder, ROWS, **changes)
    for engine in ("megatron", "hf"):
        states, layers = pooled(folder, engine)
        points = points_of(layers)
        assert states.shape[1] == len(points) == layers + 2
        of_paper = states[:, [number for number, point in enumerate(points) if point.index is not None]]
        assert [point.index for point in points if point.index is not None] == list(range(reference.shape[1]))
        assert difference(of_paper, reference) < 1e-5
        # Another point, another mean, and the last layer without the norm are found.
        assert difference(of_paper[:, :-1], reference[:, 1:]) > 0.1
        assert difference(states[:, -2:-1], reference[:, -1:]) > 0.1
        summed = of_paper * torch.tensor([len(row) for row in ROWS])[:, None, None]
        assert difference(summed, reference) > 0.1
        assert points[-2].name == f"layer {layers - 1}"
    # A length of its own for each row: no padding enters the mean.
    assert torch.equal(pooled(folder, "megatron", rows=ROWS[1:2])[0][0], pooled(folder, "megatron")[0][1])


def test_a_megatron_folder_has_the_states_of_the_folder_it_was_imported_from(tmp_path):
    folder = make_checkpoint("granite-h", tmp_path / "hf")
    (tmp_path / "megatron").mkdir()
    import_checkpoint(folder, tmp_path / "megatron")
    assert torch.equal(pooled(tmp_path / "megatron", "megatron")[0], pooled(folder, "megatron")[0])


def test_bf16_models_compute_in_bf16_and_their_means_are_fp32(tmp_path):
    folder = make_checkpoint("nemotron-h", tmp_path / "hf", torch.bfloat16)
    exact = pooled(folder, "megatron")[0]
    rounded = pooled(folder, "megatron", torch.bfloat16)[0]
    assert rounded.dtype is torch.float32
    assert 1e-4 < difference(rounded, exact) < 0.1
    # A mean of 17 bf16 numbers, rounded to bf16, would be a bf16 number.
    assert not torch.equal(rounded[1], rounded[1].to(torch.bfloat16).float())
