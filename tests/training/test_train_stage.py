"""The train stage as a recipe runs it: its outputs, its errors, and equal results with several processes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from data_artifacts import make_artifact
from safetensors.torch import load_file
from stage_runs import begin, records, run, run_until
from tiny_models import make_checkpoint
from tokenizer_folders import byte_level, save

from megatron_prism.data.mixture import Mixture
from megatron_prism.errors import CheckpointError, ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.launch import run_stage
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training import metrics
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import BatchConfig

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
HYBRID = Architecture(
    "nemotron_h", 700, 32, 3, 48, 4, 2, 8, activation="squared_relu", position_embedding="none",
    hybrid_pattern="M-*", mamba_num_heads=4, mamba_head_dim=8, mamba_state_dim=8, max_position_embeddings=64,
    tie_word_embeddings=False,
)  # fmt: skip
STEPS = 4


def stage(architecture: Architecture = TINY, **changes) -> Train:
    fields = {
        "architecture": architecture,
        "mixture": "shoebox-mcs",
        "steps": STEPS,
        "batch": BatchConfig(32, 2, 4),
        "schedule": Schedule(lr=1e-2, warmup_steps=1),
        "optimizer": OptimizerSettings(eps=1e-8),
        "validation_batches": 1,
    }
    return Train(**(fields | changes))


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    return make_artifact(stage(), tmp_path_factory.mktemp("train") / "trained", **inputs)


def steps_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_what_training_leaves(trained):
    assert {path.name for path in trained.path.iterdir()} == {
        *("architecture.json", "checkpoint", "metrics.jsonl", "receipt.json", "tensorboard")
    }
    records = steps_of(trained.path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["consumed_tokens"] == trained.metrics["tokens"] == STEPS * 4 * 32
    assert records[0]["lr"] == pytest.approx(1e-2)
    for record in records:
        assert min(record[key] for key in ("loss", "grad_norm", "tokens_per_second", "tflops", "mfu")) > 0
    assert set(trained.metrics["validation"]) == set(Mixture.load("shoebox-mcs").weights)
    assert trained.metrics["parameters"] == 700 * 32 + 2 * (32 * 8 * 8 + 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert list((trained.path / "tensorboard").glob("events.*"))


def test_each_step_is_one_line_that_names_the_peak(inputs, tmp_path):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    before = metrics.logger.level
    metrics.logger.addHandler(handler)
    metrics.logger.setLevel(logging.INFO)
    try:
        make_artifact(stage(steps=2, mixture="shoebox-base"), tmp_path / "x", **inputs)
    finally:
        metrics.logger.removeHandler(handler)
        metrics.logger.setLevel(before)
    steps = [line for line in lines if " loss " in line]
    assert len(steps) == 2
    for part in ("step 2/2", "tokens 256", "lr ", "grad norm ", "tokens/s", "TFLOP/s", "MFU ", "ETA "):
        assert part in steps[1]
    assert "matmul" in steps[1] or "data sheet" in steps[1]


def test_mid_training_starts_from_the_weights_given(trained, inputs, tmp_path):
    still = stage(steps=1, schedule=Schedule(lr=1e-9))
    fresh = make_artifact(still, tmp_path / "fresh", **inputs)
    after = make_artifact(still, tmp_path / "after", init=trained, **inputs)
    before = trained.metrics["validation"]
    assert after.metrics["validation"] == pytest.approx(before, rel=1e-3)
    assert fresh.metrics["validation"]["math"] > before["math"] + 0.1


def test_another_architecture_is_refused_by_its_first_difference(trained, inputs, tmp_path):
    wider = stage(replace(TINY, ffn_hidden_size=64))
    with pytest.raises(CheckpointError, match="checkpoint has ffn_hidden_size=48, this model has 64"):
        wider.run({"init": trained, **inputs}, tmp_path)
    with pytest.raises(ConfigError, match=r"vocab_size=512, but the tokenizer .* has 700"):
        stage(replace(TINY, vocab_size=512)).run(inputs, tmp_path)


def test_impossible_configs_are_refused_when_made():
    with pytest.raises(ConfigError, match=r"longer than architecture.max_position_embeddings=64"):
        stage(batch=BatchConfig(128, 2, 4))
    with pytest.raises(ParallelError, match="not a multiple of micro_batch_size=2 x data_parallel_size=3"):
        stage(parallel=ParallelConfig(data_parallel_size=3))
    with pytest.raises(ParallelError, match="num_query_groups=2 is not divisible by 4"):
        stage(parallel=ParallelConfig(tensor_model_parallel_size=4))
    with pytest.raises(ConfigError, match="'bf61'"):
        stage(dtype="bf61")


def test_a_mixture_file_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"name": "x", "weights": {"math": 1}}))
    made = stage(mixture="mine.yaml")
    monkeypatch.chdir("/")
    assert made.identity()["mixture"] == {"math": 1.0}


def test_the_fingerprint_follows_the_mixtures_weights_not_its_name(tmp_path):
    def fingerprint(weights: dict[str, float], name: str) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"name": "x", "weights": weights}))
        return stage(mixture=str(path)).fingerprint({})

    first = fingerprint({"math": 1, "web": 1}, "a.yaml")
    assert fingerprint({"math": 50, "web": 50}, "b.yaml") == first
    assert fingerprint({"math": 2, "web": 1}, "a.yaml") != first


@pytest.mark.parametrize("architecture", [TINY, HYBRID], ids=["dense", "hybrid"])
def test_bf16_trains_like_fp32(architecture, inputs, tmp_path):
    fp32 = make_artifact(stage(architecture), tmp_path / "fp32", **inputs)
    bf16 = make_artifact(stage(architecture, dtype="bf16"), tmp_path / "bf16", **inputs)
    for exact, rounded in zip(steps_of(fp32.path), steps_of(bf16.path), strict=True):
        # Which kernels torch chooses for bf16, and so how they round, depends on the processor.
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=1e-2)
        assert rounded["loss"] != exact["loss"]


def test_fields_of_megatron_reach_the_run_its_receipt_and_a_resumed_run(trained, inputs, tmp_path):
    """Dropout draws random numbers in every step, so a resumed run must go on with the same ones."""
    block = MegatronBlock({"hidden_dropout": 0.1}, optimizer={"decoupled_weight_decay": False})
    dropped = stage(megatron=block, checkpoint_every=1)
    whole = run(dropped, inputs, tmp_path / "whole")
    run_until(dropped, inputs, begin(dropped, inputs, tmp_path / "resumed").partial, 2)
    assert records(run(dropped, inputs, tmp_path / "resumed").path) == records(whole.path)
    assert records(whole.path)[0]["loss"] != records(trained.path)[0]["loss"]
    assert whole.receipt.config["megatron"] == {
        "transformer": {"hidden_dropout": 0.1}, "ddp": {}, "optimizer": {"decoupled_weight_decay": False},
    }  # fmt: skip


def test_two_processes_train_the_same_model_through_the_launcher(trained, inputs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    sizes = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    found = run_stage(stage(parallel=sizes), inputs, out)
    assert found["parameters"] == trained.metrics["parameters"]
    for one, two in zip(steps_of(trained.path), steps_of(out), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    log = tmp_path / ".torchrun" / "out.log"
    assert log.read_text().count("step 4/4") == 1, "rank 0, and only it, logs"


@pytest.mark.parametrize("kind", ["hugging face", "megatron"])
def test_starts_from_a_folder_and_carries_its_files(kind, inputs, tmp_path):
    from megatron_prism.conversion.export_hf import export_checkpoint
    from megatron_prism.conversion.import_hf import import_checkpoint
    from megatron_prism.conversion.weights import MegatronWeights

    hf = make_checkpoint("granite", tmp_path / "hf", vocab_size=700, max_position_embeddings=64)
    (tmp_path / "imported").mkdir()
    import_checkpoint(hf, tmp_path / "imported")
    architecture = MegatronWeights(tmp_path / "imported").architecture
    start = hf if kind == "hugging face" else tmp_path / "imported"
    # The learning rate is too small to change a weight.
    train = stage(architecture, init_from=str(start), schedule=Schedule(lr=1e-30), steps=1)
    made = make_artifact(train, tmp_path / "trained", **inputs)
    (tmp_path / "back").mkdir()
    export_checkpoint(MegatronWeights(made.path), tmp_path / "back")
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / "back" / file).read_bytes() == (hf / file).read_bytes()


def test_a_start_that_does_not_fit_is_refused(trained, inputs, tmp_path):
    hf = make_checkpoint("granite", tmp_path / "hf", vocab_size=700, max_position_embeddings=64)
    with pytest.raises(ConfigError, match="already gives this stage an `init` input"):
        stage(init_from=str(hf)).run(inputs | {"init": trained}, tmp_path)
    with pytest.raises(CheckpointError, match="the checkpoint has num_layers=3, this model has 2"):
        stage(init_from=str(hf)).run(inputs, tmp_path)
    changed = stage(init_from=str(hf)).identity()
    (hf / "config.json").write_text((hf / "config.json").read_text() + " ")
    assert stage(init_from=str(hf)).identity() != changed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fp8": "hybrid"}, "needs dtype=bf16"),
        ({"fp8": "int8", "dtype": "bf16"}, "fp8='int8'"),
        ({"backend": "tee"}, "backend='tee'"),
    ],
)
def test_what_no_machine_can_train_is_refused_at_once(change, named):
    with pytest.raises(ConfigError, match=named):
        stage(**change)


def test_fp8_without_transformer_engine_is_an_error(inputs, tmp_path):
    with pytest.raises(ConfigError, match="fp8=hybrid: backend=torch would silently compute without it"):
        stage(fp8="hybrid", dtype="bf16", backend="torch").run(inputs, tmp_path)
    with pytest.raises(ConfigError, match="fp8=hybrid: no CUDA GPU, no Transformer Engine"):
        stage(fp8="hybrid", dtype="bf16", backend="te").run(inputs, tmp_path)


def test_tokens_of_another_tokenizer_are_refused(trained, inputs, tmp_path):
    """The error comes before a model is built; the receipt records how the training text was made."""
    assert trained.metrics["text"] == inputs["tokens"].metrics["text"]
    other = save(byte_level(), tmp_path / "other")
    given = inputs | {"tokenizer": Artifact(other, inputs["tokenizer"].receipt)}
    with pytest.raises(ConfigError, match=r"made with a different tokenizer from .*other, so the ids"):
        stage().run(given, tmp_path)
