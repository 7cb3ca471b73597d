"""What a run folder keeps, what it goes on from, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch
from parallel_runs import Motifs

from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import DP_RESHARDABLE, FULLY_RESHARDABLE, load_weights
from megatron_prism.models.parallel_save import ThreadedWriter
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training import checkpoint_saver, saved_state
from megatron_prism.training.checkpoint import TrainingState
from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.run_folder import RunFolder
from megatron_prism.training.saved_state import RECORD, resumable_states
from megatron_prism.training.trainer import BatchConfig, Trainer

TINY = Architecture("granite", 96, 32, 2, 48, 4, 2, 8, max_position_embeddings=32)
LENGTH, STEPS = 16, 6


@pytest.fixture(autouse=True)
def one_process():
    with session(seed=3):
        yield


def trainer(architecture: Architecture = TINY) -> Trainer:
    return Trainer(
        architecture,
        ParallelConfig(),
        BatchConfig(LENGTH, 2, 2),
        OptimizerSettings(eps=1e-8),
        dtype=torch.float32,
    )


def run_folder(out: Path, run: Trainer | None = None, steps: int = STEPS, **settings) -> RunFolder:
    return RunFolder(out, run or trainer(), CheckpointSettings(**settings), steps=steps)


def advance(folder: RunFolder, state: TrainingState, steps: int, *, every: int = 1) -> list[float]:
    """Train, saving after every step; returns the losses."""
    losses = []
    for _ in range(steps):
        losses.append(folder.trainer.step(Motifs(LENGTH), state.consumed_samples, 1e-2)[0])
        state.step, state.consumed_samples = state.step + 1, state.consumed_samples + 2
        folder.after_step(state)
        if every and state.step % every == 0:
            folder.save_step(state)
    return losses


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def weights(run: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.models[0].parameters()]


def truncate(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-10])


def overwrite(folder: Path) -> None:
    """The size stays, so that only reading it shows the damage."""
    for file in folder.glob("*.distcp"):
        file.write_bytes(bytes(file.stat().st_size))


DAMAGES = {
    "truncated": (truncate, r"step_0000003: damaged checkpoint: __0_0.distcp has \d+ bytes"),
    "missing": (lambda folder: (folder / "__0_1.distcp").unlink(), "damaged checkpoint: __0_1.distcp is missing"),
    "record": (lambda folder: (folder / RECORD).write_text('{"format": 2, "prog'), "not a readable record"),
    "overwritten": (overwrite, "step_0000003: cannot be loaded into this model"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_damage_the_checkpoint_before_is_used(damage, tmp_path, caplog):
    first = run_folder(tmp_path)
    state = TrainingState()
    losses = advance(first, state, 3) + advance(first, state, 2, every=0)
    spoil, told = DAMAGES[damage]
    spoil(tmp_path / "resume" / "step_0000003")
    second = run_folder(tmp_path)
    state = second.resume()
    assert (state.step, state.consumed_samples) == (2, 4)
    assert advance(second, state, 3, every=0) == losses[2:]
    (line,) = [record.getMessage() for record in caplog.records if "is used" in record.getMessage()]
    assert re.search(told, line)


def test_if_no_checkpoint_can_be_read_the_newest_is_named(tmp_path):
    advance(run_folder(tmp_path), TrainingState(), 2)
    for folder in (tmp_path / "resume").iterdir():
        overwrite(folder)
    with pytest.raises(CheckpointError, match="step_0000002: cannot be loaded"):
        run_folder(tmp_path).resume()


def test_a_newer_format_and_another_model_are_refused(tmp_path):
    advance(run_folder(tmp_path), TrainingState(), 1)
    with pytest.raises(
        CheckpointError, match="step_0000001: the checkpoint has ffn_hidden_size=48, this model has 64"
    ):
        run_folder(tmp_path, trainer(replace(TINY, ffn_hidden_size=64))).resume()
    record = tmp_path / "resume" / "step_0000001" / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 3}))
    with pytest.raises(
        CheckpointError, match=r"a checkpoint of format 3, but this version .* reads formats up to 2"
    ):
        run_folder(tmp_path).resume()


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    first = run_folder(tmp_path, optimizer_format=FULLY_RESHARDABLE)
    advance(first, TrainingState(), 1)
    (tmp_path / "resume" / "step_0000001" / RECORD).write_text('{"step": 1, "consumed_samples": 2}')
    second = run_folder(tmp_path)
    state = second.resume()
    assert advance(second, state, 2) == advance(first, TrainingState(1, 2), 2)


def test_what_is_kept_and_what_is_removed(tmp_path):
    folder = run_folder(tmp_path, keep_last=2, keep_every=4, weights_every=3)
    (tmp_path / "resume" / "step_0000001.partial").mkdir(parents=True)
    (tmp_path / "resume" / "step_0000000.partial").mkdir()
    assert folder.resume() is None
    advance(folder, TrainingState(), 7)
    assert names(tmp_path / "resume") == ["step_0000006", "step_0000007"]
    assert names(tmp_path / "checkpoints") == ["step_0000004"]
    assert names(tmp_path / "weights") == ["step_0000003", "step_0000006"]
    assert names(tmp_path / "weights" / "step_0000006") == ["architecture.json", "checkpoint"]
    assert [state.step for state in resumable_states(tmp_path)] == [7, 6, 4]
    # The kept one counts, too.
    advance(folder, TrainingState(7, 14), 1)
    assert names(tmp_path / "resume") == ["step_0000007"]


def test_the_weights_of_a_step_are_a_model_without_optimizer(tmp_path):
    run = trainer()
    folder = run_folder(tmp_path, run, weights_every=1)
    advance(folder, TrainingState(), 1, every=0)
    saved, expected = tmp_path / "weights" / "step_0000001", weights(run)
    size = sum(path.stat().st_size for path in saved.rglob("*"))
    assert size < 1.5 * sum(tensor.nbytes for tensor in expected) + 60_000
    other = trainer()
    load_weights(other.models, saved / "checkpoint")
    assert all(map(torch.equal, weights(other), expected))
    assert Architecture.load(saved / "architecture.json") == TINY


def test_a_kill_while_pruning_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    folder = run_folder(tmp_path, keep_last=1)
    advance(folder, TrainingState(), 1)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
    advance(folder, TrainingState(1, 2), 1)
    assert names(tmp_path / "resume") == ["step_0000001", "step_0000002"]
    assert [state.step for state in resumable_states(tmp_path)] == [2]
    monkeypatch.undo()
    advance(folder, TrainingState(2, 4), 1)
    assert names(tmp_path / "resume") == ["step_0000003"]


def test_a_disk_that_is_too_full_is_found_before_the_save(tmp_path, monkeypatch):
    folder = run_folder(tmp_path, keep_last=3)
    state = TrainingState()
    advance(folder, state, 3)
    monkeypatch.setattr(checkpoint_saver, "free_bytes", lambda path: 1000)
    monkeypatch.setattr(ThreadedWriter, "write", lambda self: pytest.fail("it writes"))
    told = r"step_0000004: needs 0\.\d+ GB, but the disk has 0.00 GB free.*before it are kept: free some"
    with pytest.raises(CheckpointError, match=told):
        advance(folder, state, 1)
    # What was dispensable was removed first, but never the newest one.
    assert names(tmp_path / "resume") == ["step_0000003"]
    monkeypatch.undo()
    # Room for one checkpoint, once the older ones are gone.
    monkeypatch.setattr(
        checkpoint_saver,
        "free_bytes",
        lambda path: 1000 if len(names(path.parent)) > 2 else 10**9,
    )
    second, state = run_folder(tmp_path / "second", keep_last=3), TrainingState()
    advance(second, state, 3)
    assert names(tmp_path / "second" / "resume") == ["step_0000002", "step_0000003"]


def test_the_need_is_the_size_of_the_checkpoint(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoint_saver, "RESERVE_BYTES", 0)
    honest = checkpoint_saver.torch.distributed.all_reduce

    def noting(tensor, *arguments, **keywords):
        honest(tensor, *arguments, **keywords)
        asked.append(tensor.clone())

    monkeypatch.setattr(checkpoint_saver.dist, "all_reduce", noting)
    advance(run_folder(tmp_path), TrainingState(), 1)
    written = sum(path.stat().st_size for path in (tmp_path / "resume").rglob("*.distcp"))
    (needed,) = [int(tensor) for tensor in asked if tensor.dtype is torch.int64 and int(tensor) > 1000]
    assert 0.5 * written < needed <= written


def test_a_write_that_fails_is_one_line_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    folder = run_folder(tmp_path)
    state = TrainingState()
    advance(folder, state, 1)

    def fail(self, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ThreadedWriter, "_write_file", fail)
    with pytest.raises(CheckpointError, match=r"step_0000002: cannot be written \(.*No space left on device"):
        advance(folder, state, 1)
    assert names(tmp_path / "resume") == ["step_0000001"]


def test_a_save_in_the_background_has_the_numbers_of_its_moment(tmp_path, monkeypatch):
    may_write = threading.Event()
    honest = ThreadedWriter.write

    def slow(self):
        assert may_write.wait(30)
        honest(self)

    monkeypatch.setattr(ThreadedWriter, "write", slow)
    run = trainer()
    folder = run_folder(tmp_path, run, in_background=True)
    state = TrainingState()
    advance(folder, state, 2, every=2)
    expected = weights(run)
    losses = advance(folder, state, 2, every=0)
    assert names(tmp_path / "resume") == ["step_0000002.partial"], "complete before it was written"
    assert not all(map(torch.equal, weights(run), expected))
    may_write.set()
    folder.wait()
    assert names(tmp_path / "resume") == ["step_0000002"]
    resumed = trainer()
    second = run_folder(tmp_path, resumed)
    state = second.resume()
    assert state.step == 2
    assert all(map(torch.equal, weights(resumed), expected))
    assert advance(second, state, 2, every=0) == losses


def test_one_save_at_a_time_and_the_buffers_are_used_again(tmp_path):
    folder = run_folder(tmp_path, in_background=True, keep_last=9)
    state = TrainingState()
    advance(folder, state, 1)
    buffers = list(folder.saver._buffers[""]._buffers)
    advance(folder, state, 2)
    assert all(
        mine is theirs for mine, theirs in zip(folder.saver._buffers[""]._buffers, buffers, strict=True)
    )
    folder.save_model(state)
    assert [saved.step for saved in resumable_states(tmp_path)] == [3, 3, 2, 1]


def test_a_finished_run_has_nothing_left_to_train(tmp_path):
    run = trainer()
    folder = run_folder(tmp_path, run, steps=3)
    state = TrainingState()
    advance(folder, state, 3, every=2)
    folder.save_model(state)
    expected = weights(run)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "validation": {"a": 1}}\n{"step": 3, "loss": 1.0}\n{"step": 3, "validation": {"a": 1}}\n{"st'
    )
    resumed = trainer()
    second = run_folder(tmp_path, resumed, steps=3)
    state = second.resume()
    assert (state.step, second.finished) == (3, True)
    assert all(map(torch.equal, weights(resumed), expected))
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert kept == ['{"step": 2, "validation": {"a": 1}}', '{"step": 3, "loss": 1.0}']
    second.save_model(state)
    # Without the optimizer a longer run goes on from the last checkpoint that has it.
    longer = run_folder(tmp_path, steps=5)
    assert (longer.resume().step, longer.finished) == (2, False)


def test_with_its_optimizer_a_finished_run_can_be_made_longer(tmp_path):
    folder = run_folder(tmp_path, steps=2, keep_optimizer=True)
    state = TrainingState()
    advance(folder, state, 2, every=0)
    folder.save_model(state)
    losses = advance(folder, state, 2, every=0)
    (final,) = resumable_states(tmp_path)
    assert (final.folder, final.ends(2), final.has_optimizer) == (tmp_path / "checkpoint", True, True)
    longer = run_folder(tmp_path, steps=4)
    state = longer.resume()
    assert not longer.finished
    assert advance(longer, state, 2, every=0) == losses


def test_fp8_scales_are_kept_for_a_resume_and_are_no_weights(tmp_path, monkeypatch):
    """Stand-ins for Transformer Engine's layers: their extra state is what its own is, an object with tensors."""
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear

    monkeypatch.setattr(
        ColumnParallelLinear, "get_extra_state", lambda self: self.scale and {"scale": self.scale}
    )
    monkeypatch.setattr(
        ColumnParallelLinear,
        "set_extra_state",
        lambda self, state: state and setattr(self, "scale", state["scale"]),
    )

    def layers(run: Trainer, start: float) -> list[ColumnParallelLinear]:
        found = [each for each in run.models[0].modules() if isinstance(each, ColumnParallelLinear)]
        for number, each in enumerate(found):
            # That of the output layer must be empty (gpt_model.py:825): it does not compute in FP8.
            each.scale = None if each is run.models[0].module.output_layer else torch.tensor([start + number])
        run.models[0].module.config.fp8 = "hybrid"
        return [each for each in found if each.scale is not None]

    run = trainer()
    first = layers(run, 100.0)
    folder = run_folder(tmp_path, run)
    advance(folder, TrainingState(), 1)
    folder.save_model(TrainingState(STEPS))
    resumed = trainer()
    second = layers(resumed, 0.0)
    load_weights(resumed.models, tmp_path / "checkpoint")
    assert [float(each.scale) for each in second] == list(range(len(second))), "weights alone change no scale"
    (tmp_path / "checkpoint" / RECORD).unlink()
    run_folder(tmp_path, resumed).resume()
    assert [float(each.scale) for each in second] == [float(each.scale) for each in first]
    assert len(first) >= 4


def test_the_format_is_recorded_and_impossible_settings_are_refused(tmp_path):
    folder = run_folder(tmp_path)
    advance(folder, TrainingState(), 1)
    record = json.loads((tmp_path / "resume" / "step_0000001" / RECORD).read_text())
    assert (record["format"], record["optimizer"]) == (saved_state.FORMAT, DP_RESHARDABLE)
    assert record["architecture"] == json.loads(json.dumps(asdict(TINY)))
    assert record["layout"]["tensor_model_parallel_size"] == 1
    with pytest.raises(ConfigError, match="keep_last=0"):
        CheckpointSettings(keep_last=0)
    with pytest.raises(
        ConfigError, match=r"checkpoints\.weights_every=-1: must be a finite number of at least zero"
    ):
        CheckpointSettings(weights_every=-1)
    with pytest.raises(ConfigError, match=r"checkpoints\.optimizer_format='dp'"):
        CheckpointSettings(optimizer_format="dp")


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    advance(run_folder(tmp_path), TrainingState(), 1)
    saved = tmp_path / "resume" / "step_0000001"
    saved.rename(saved.with_name("step_0000001.old"))
    assert run_folder(tmp_path).resume().step == 1
    assert names(tmp_path / "resume") == ["step_0000001"]


def test_a_save_starts_no_process(tmp_path):
    """Upstream's starts a queue manager that outlives a killed trainer; see tests/conftest.py for the whole suite."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    before = psutil.Process().children(recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", lambda: pytest.fail("it forks"))
        patch.setattr(
            filesystem_async, "_get_write_results_queue", lambda: pytest.fail("it starts a manager")
        )
        advance(run_folder(tmp_path), TrainingState(), 1)
        advance(folder := run_folder(tmp_path, in_background=True), TrainingState(1, 2), 1)
        folder.wait()
    assert psutil.Process().children(recursive=True) == before
