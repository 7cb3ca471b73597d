"""The optimizer's fp32 weights in checkpoints of bf16 runs, in each of the ways in which Megatron stores them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from parallel_runs import HYBRID, VOCABULARY, Motifs

from megatron_prism.analysis.inputs import open_model
from megatron_prism.analysis.weight_summary import analyze_weights
from megatron_prism.conversion.torch_dist.layout import tensor_slices
from megatron_prism.errors import CheckpointError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import DP_RESHARDABLE, FULLY_RESHARDABLE, unwrap
from megatron_prism.models.families import parameter_map
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.checkpoint import Contents, TrainingState, save_contents
from megatron_prism.training.checkpoint_saver import CheckpointSaver
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.saved_state import RECORD
from megatron_prism.training.trainer import BatchConfig, Trainer

DENSE = Architecture("granite", VOCABULARY, 32, 2, 48, 4, 2, 8)
LENGTH, RATE = 16, 1e-5
STORED = {
    "by parameter": (True, FULLY_RESHARDABLE),
    "in buckets": (True, DP_RESHARDABLE),
    "not distributed": (False, FULLY_RESHARDABLE),
}


@pytest.fixture(autouse=True)
def one_process():
    with session(seed=3):
        yield


def trainer(architecture: Architecture, distributed: bool = True, dtype=torch.bfloat16) -> Trainer:
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    return Trainer(
        architecture,
        parallel,
        BatchConfig(LENGTH, 2, 2),
        OptimizerSettings(eps=1e-8),
        dtype=dtype,
        backend="torch",
    )


def save(folder: Path, run: Trainer, architecture: Architecture, format: str | None) -> Path:
    """A model folder, as a training stage leaves it; with the optimizer's state in `format`, or without."""
    folder.mkdir()
    architecture.save(folder / "architecture.json")
    contents = Contents(
        run.models,
        run.optimizer if format else None,
        TrainingState(1),
        format or FULLY_RESHARDABLE,
        architecture=asdict(architecture),
    )
    save_contents(CheckpointSaver(), folder / "checkpoint", contents)
    return folder


@pytest.mark.parametrize("architecture", [DENSE, HYBRID], ids=["dense", "hybrid"])
@pytest.mark.parametrize("stored", STORED)
def test_the_optimizers_own_numbers_are_read(architecture, stored, tmp_path):
    distributed, format = STORED[stored]
    run = trainer(architecture, distributed)
    before = save(tmp_path / "before", run, architecture, None)
    run.step(Motifs(LENGTH), 0, RATE)
    after = save(tmp_path / "after", run, architecture, format)

    weights = open_model(after)
    assert set(weights.dtypes.values()) == {torch.float32}
    assert any("fp32 weights" in remark for remark in weights.remarks)
    # In memory the copies hang at the model's parameters.
    parameters = dict(unwrap(run.models[0]).named_parameters())
    checked = 0
    for rule in parameter_map(architecture):
        parameter = parameters[rule.megatron]
        found = torch.cat(
            [
                weights.reader.rows(each.key, each.layer, 0, each.rows).flatten()
                for each in tensor_slices(rule, architecture)
            ]
        )
        assert torch.equal(found, parameter.main_param.flatten()), rule.megatron
        checked += len(found)
    assert checked > 10_000

    exact, rounded = (
        analyze_weights(before, [model]).document["models"][0]["all"]
        for model in (after, save(tmp_path / "bf16", run, architecture, None))
    )
    # At this rate most steps vanish in bf16; in fp32 nearly all are seen, and what vanished is what bf16 does not show.
    assert exact["equal"] < 0.1
    assert rounded["equal"] > 0.5
    assert exact["vanished"] * (1 - exact["equal"]) + exact["equal"] == pytest.approx(
        rounded["equal"], abs=1e-9
    )
    assert rounded["vanished"] is None


def test_weights_of_an_fp32_run_are_read_as_they_are(tmp_path):
    run = trainer(DENSE, dtype=torch.float32)
    weights = open_model(save(tmp_path / "model", run, DENSE, DP_RESHARDABLE))
    assert not weights.remarks
    assert type(weights.reader).__name__ == "CheckpointReader"


def test_a_checkpoint_without_a_folder_of_its_own(tmp_path):
    """As a run keeps it: RUN/STAGE/checkpoints/step_N, whose record names the architecture."""
    folder = save(tmp_path / "model", trainer(DENSE), DENSE, DP_RESHARDABLE)
    kept = folder / "checkpoint"
    weights, whole = open_model(kept), open_model(folder)
    assert all(torch.equal(weights.tensor(name), whole.tensor(name)) for name in whole.shapes)
    assert weights.architecture == whole.architecture
    record = json.loads((kept / RECORD).read_text())
    (kept / RECORD).write_text(json.dumps(record | {"architecture": {}}))
    with pytest.raises(CheckpointError, match="names no architecture"):
        open_model(kept)


def test_an_index_that_does_not_cover_a_tensor_is_refused(tmp_path):
    run = trainer(DENSE)
    folder = save(tmp_path / "model", run, DENSE, DP_RESHARDABLE)
    (index,) = (folder / "checkpoint").glob("optimizer_pieces_*.json")
    content = json.loads(index.read_text())
    content["pieces"] = [
        piece
        for piece in content["pieces"]
        if not (piece[2].endswith("linear_fc2.weight") and piece[3][0] == 1)
    ]
    index.write_text(json.dumps(content))
    weights = open_model(folder)
    name = next(each for each in weights.shapes if "layers.1" in each and "down_proj" in each)
    with pytest.raises(CheckpointError, match=r"linear_fc2\.weight' is incomplete"):
        weights.tensor(name)
