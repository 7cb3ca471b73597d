"""A Hugging Face folder in every layout: the same weights on every rank, the same loss, the same exported bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hf_layouts
import pytest
import torch
from hf_layouts import BATCH, HALF, HYBRID, KINDS, LAYOUTS, SWAPPED, FixedTokens, fits, folder_name
from hf_layouts import findings as measured
from parallel_runs import results_of
from safetensors.torch import load_file
from tiny_models import make_checkpoint

from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.logits import folder_outputs

CASES = [
    (kind, name)
    for layouts in LAYOUTS.values()
    for name, parallel in layouts.items()
    for kind in KINDS
    if fits(kind, parallel)
]
# In these layouts the vocabulary of 61 is padded to 62 rows.
SPLIT_VOCABULARY = ("tp2", "tp2sp", "tp2pp2")
BYTES = [(folder_name(kind), name) for kind, name in CASES] + [
    (folder_name(kind, dtype=torch.bfloat16), name) for kind in HALF for name in ("tp2", "pp2")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NAME/hf` made by transformers, and `NAME/megatron` imported from it."""
    root = tmp_path_factory.mktemp("hf-layouts")

    def make(name: str, tiny: str, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
        (root / name / "megatron").mkdir(parents=True)
        import_checkpoint(
            make_checkpoint(tiny, root / name / "hf", dtype, **changes), root / name / "megatron"
        )

    for kind, (tiny, changes) in KINDS.items():
        make(folder_name(kind), tiny, **changes)
        if kind in HALF:
            make(folder_name(kind, dtype=torch.bfloat16), tiny, torch.bfloat16, **changes)
    make_checkpoint("llama-one-group", root / "one-group/hf")
    return root


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return measured(folder, 1) | results_of(hf_layouts.main, folder, (2, 4))


def tolerance(kind: str) -> float:
    return 1e-4 if kind in HYBRID else 1e-5


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def unequal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that are not the same bytes."""
    assert first.keys() == second.keys()
    return {
        name
        for name, tensor in first.items()
        if tensor.dtype != second[name].dtype
        or not torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8))
    }


def transformers_loss(hf: Path, zero_logits: int = 0) -> float:
    """Mean loss that transformers' logits give, with so many more tokens of logit 0 in the softmax."""
    samples = [FixedTokens()[index] for index in range(BATCH)]
    tokens, labels = (torch.stack([sample[key] for sample in samples]) for key in ("tokens", "labels"))
    logits = folder_outputs(hf, tokens, torch.float32).logits
    logits = torch.cat([logits, logits.new_zeros(*logits.shape[:2], zero_logits)], -1)
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ranks_hold_what_they_hold_by_way_of_a_checkpoint(found, kind, name):
    ranks = found[f"{kind}/{name}"]["ranks"]
    assert [rank["different"] for rank in ranks] == [[]] * len(ranks)
    padded = sum(rank["padding"] for rank in ranks)
    assert bool(padded) == (name in SPLIT_VOCABULARY)
    # Both ways set rows that only pad the vocabulary to zero.
    assert all(rank["padding_is_zero"] for rank in ranks)
    assert all(rank["padding_from_checkpoint"] in (None, 0.0) for rank in ranks)


@pytest.mark.parametrize(("source", "name"), BYTES)
def test_the_export_is_the_bytes_that_came(found, folder, source, name):
    assert unequal(tensors(folder / "exports" / f"{source}-{name}"), tensors(folder / source / "hf")) == set()


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("name", ["tp2", "pp2"])
def test_bfloat16_ranks_hold_the_same_too(found, kind, name):
    assert [rank["different"] for rank in found[f"{kind}/{name}-bf16"]["ranks"]] == [[], []]


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_has_the_loss_of_transformers(found, folder, kind):
    expected = transformers_loss(folder / folder_name(kind) / "hf")
    assert found[f"{kind}/one"]["loss"] == pytest.approx(expected, rel=tolerance(kind))


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] != "one"])
def test_same_loss_as_one_process(found, kind, name):
    expected = found[f"{kind}/one"]["loss"]
    assert found[f"{kind}/{name}"]["loss"] == pytest.approx(expected, rel=tolerance(kind))


@pytest.mark.parametrize("kind", [kind for kind, name in CASES if name == "tp2"])
def test_a_padded_row_that_took_part_in_the_softmax_would_be_seen(found, folder, kind):
    # Megatron's cross entropy sums over padded rows as well: they are zero, so each adds exp(0) to the softmax.
    loss = found[f"{kind}/tp2"]["padded_loss"]
    expected = transformers_loss(folder / folder_name(kind) / "hf", zero_logits=1)
    assert loss == pytest.approx(expected, rel=tolerance(kind))
    # With random weights that is about 1/62 of the mass, far more than the tolerance.
    assert loss - found[f"{kind}/one"]["loss"] > 20 * tolerance(kind)


@pytest.mark.parametrize("kind", [kind for kind, name in CASES if name == "tp2"])
def test_a_tensor_parallel_rank_reads_its_half_and_no_byte_more(found, folder, kind):
    whole = sum(tensor.nbytes for tensor in tensors(folder / folder_name(kind) / "hf").values())
    ranks = found[f"{kind}/tp2"]["ranks"]
    assert [rank["read"] for rank in ranks] == [rank["held"] for rank in ranks]
    # Both ranks hold and read the norms.
    assert all(0.49 < rank["read"] / whole < 0.51 for rank in ranks)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] in ("pp2", "pp2vp2", "tp2pp2")])
def test_a_pipeline_stage_reads_its_layers_only(found, folder, kind, name):
    whole = sum(tensor.nbytes for tensor in tensors(folder / folder_name(kind) / "hf").values())
    ranks = found[f"{kind}/{name}"]["ranks"]
    assert [rank["read"] for rank in ranks] == [rank["held"] for rank in ranks]
    # The two stages are not of equal size where a hybrid's layers differ.
    assert max(rank["read"] for rank in ranks) / whole < 1.2 / len(ranks)


@pytest.mark.parametrize("kind", SWAPPED)
def test_swapped_shards_are_seen(found, folder, kind):
    ranks = found[f"{kind}/tp2"]["ranks"]
    assert [rank["swapped_different"] for rank in ranks] == [[f"0.{SWAPPED[kind]}"]] * 2
    source = folder_name(kind)
    wrong = unequal(tensors(folder / "exports" / f"{source}-tp2-swapped"), tensors(folder / source / "hf"))
    attention, mixer = "model.layers.1.self_attn", "backbone.layers.3.mixer"
    assert (
        wrong
        == {
            "mistral-wide-heads": {f"{attention}.{part}_proj.weight" for part in "qkv"},
            "nemotron-h": {f"{mixer}.o_proj.weight"},
            "granite-h-groups": {"model.layers.2.mamba.in_proj.weight"},
        }[kind]
    )


def test_a_layout_that_does_not_fit_says_what_to_use(found):
    messages = found["refusals"]
    assert "mamba_num_groups=1" in messages[folder_name("granite-h")]
    assert "use context_parallel_size, pipeline_model_parallel_size" in messages[folder_name("granite-h")]
    assert "num_query_groups=1 is not divisible by 2" in messages["one-group"]


def test_losses_are_those_of_models_that_differ(found):
    losses = [found[f"{kind}/one"]["loss"] for kind in KINDS]
    assert all(math.isfinite(loss) for loss in losses)
    assert len({round(loss, 5) for loss in losses}) == len(KINDS)
