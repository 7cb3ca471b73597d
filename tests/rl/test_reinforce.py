"""The whole `rl` stage: its outputs, resuming after a kill at any step, and its errors."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import warm
import zstandard
from tiny_rl import DENSE, MODELS, artifact, make_inputs, tiny_run

from megatron_prism.errors import CheckpointError, ConfigError, DataError
from megatron_prism.models.build import build_model
from megatron_prism.platform.process_groups import session
from megatron_prism.rl.gate import GateSettings, GateStop
from megatron_prism.rl.objective import Objective
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.training.log_settings import LogSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.verification.settings import GradingSettings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return {kind: make_inputs(tmp_path_factory.mktemp(kind), kind) for kind in MODELS}


def lines(out):
    """metrics.jsonl without times."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    for line in found:
        line.pop("seconds", None)
    return found


def answers(folder, step):
    with zstandard.open(folder / f"step_{step:07d}.jsonl.zst", "rt") as handle:
        return [json.loads(line) for line in handle]


def weights(out):
    from megatron_prism.models.architecture import Architecture
    from megatron_prism.models.checkpoint_io import load_weights

    with session(seed=1):
        model = build_model(Architecture.load(out / "architecture.json"))
        load_weights([model], out / "checkpoint")
        return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor is not None}


def run(stage, inputs, out):
    out.mkdir(exist_ok=True)
    return stage.run(inputs, out)


RESUMABLE = {
    "steps": 5,
    "checkpoint_every": 1,
    "evaluate_every": 2,
    "evaluation_samples": 2,
    "loop": LoopSettings(prompts_per_step=3, samples_per_prompt=3, reference_alpha=0.5, reference_interval=2),
}


def resumable(kind="dense", **changes):
    return tiny_run(kind, **RESUMABLE | changes)


@pytest.fixture(scope="module")
def unbroken_run(inputs, tmp_path_factory):
    """The folder of an uninterrupted run of a kind, made when it is first asked for."""

    @cache
    def made(kind):
        out = tmp_path_factory.mktemp("unbroken")
        run(resumable(kind), inputs[kind] | {"tracked": inputs[kind]["prompts"]}, out)
        return out

    return made


@pytest.fixture(scope="module")
def unbroken(unbroken_run):
    return unbroken_run("dense")


def killed_in(step, stage, inputs, out):
    """Run in a child that kills itself in the middle of `step`, after the update and before anything is written."""
    from megatron_prism.rl import record

    honest = record.RLLog.step

    def dying(self, number, *arguments):
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)
        honest(self, number, *arguments)

    record.RLLog.step = dying
    torch.set_num_threads(1)
    run(stage, inputs, out)


def kill(step, stage, inputs, out):
    child = warm.Child(killed_in, step, stage, inputs, out)
    assert child.wait(120) == -signal.SIGKILL
    child.wait_for_descendants(10)


def same_run(out, whole):
    assert lines(out) == lines(whole)
    mine, theirs = weights(out), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("dense", (3,)),
        pytest.param("dense", (1, 4, 5), marks=pytest.mark.slow),
        pytest.param("hybrid", (1, 5), marks=pytest.mark.slow),
    ],
)
def test_after_kills_the_run_is_the_unbroken_one(kind, steps, inputs, unbroken_run, tmp_path):
    given = inputs[kind] | {"tracked": inputs[kind]["prompts"]}
    out = tmp_path / "out"
    for step in steps:
        kill(step, resumable(kind), given, out)
    run(resumable(kind), given, out)
    same_run(out, unbroken_run(kind))


# A random model is never right, so without the penalty that these tests add all rewards are equal.
WORTHLESS = RewardSettings(format_gate=False, unfinished=None)


def test_a_run_without_anything_to_learn_ends_early_and_says_so(inputs, tmp_path, caplog):
    out = tmp_path / "out"
    stage = resumable(give_up_after=3, rewards=WORTHLESS)
    given = inputs["dense"] | {"tracked": inputs["dense"]["prompts"]}
    metrics = run(stage, given, out)
    assert (metrics["steps"], metrics["given_up"], metrics["consumed_prompts"]) == (3, True, 9)
    assert "all groups had equal rewards for" in caplog.text
    assert [line["step"] for line in lines(out) if "evaluation" in line] == [0, 2, 3]
    start = weights(inputs["dense"]["model"].path)
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(out).items())


def test_a_killed_run_gives_up_at_the_same_step(inputs, tmp_path):
    stage = resumable(give_up_after=4, rewards=WORTHLESS, checkpoint_every=2, evaluate_every=0)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(stage, inputs["dense"], whole)
    kill(4, stage, inputs["dense"], out)
    assert run(stage, inputs["dense"], out)["steps"] == 4
    same_run(out, whole)


def test_a_run_that_learns_does_not_give_up(inputs, tmp_path):
    stage = resumable(give_up_after=1, evaluate_every=0, checkpoint_every=0)
    metrics = run(stage, inputs["dense"], tmp_path / "out")
    assert (metrics["steps"], metrics["given_up"]) == (5, False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_twenty_kills_at_any_moment(kind, inputs, tmp_path):
    """Killed after random times, in sampling, grading, updating and saving alike."""
    import random

    given, rng = inputs[kind] | {"tracked": inputs[kind]["prompts"]}, random.Random(kind)
    stage = resumable(kind, steps=120)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(stage, given, whole)
    kills, reached = 0, 0
    while kills < 20:
        child = warm.Child(run, stage, given, out)
        # Some way into the steps after the next checkpoint, however fast the machine is.
        while child.exitcode is None and latest_step(out) <= reached:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.8))
        assert child.exitcode is None, "done before all kills: give it more steps"
        child.kill()
        kills, reached = kills + 1, latest_step(out)
    run(stage, given, out)
    print(f"{kind}: {kills} kills, the last after step {reached} of 120")
    same_run(out, whole)


def latest_step(out):
    """Of the last whole checkpoint."""
    found = [int(folder.name.removeprefix("step_")) for folder in (out / "resume").glob("step_*[0-9]")]
    return max(found, default=0)


def test_a_run_that_restarts_the_prompt_order_differs(inputs, unbroken, tmp_path):
    """Negative control: the same weights, but the prompt order starts again."""
    from megatron_prism.rl.prompts import PromptOrder

    out = tmp_path / "out"
    kill(4, resumable(), inputs["dense"], out)
    with pytest.MonkeyPatch.context() as patch:
        honest = PromptOrder.take
        patch.setattr(PromptOrder, "take", lambda self, position, number: honest(self, position - 9, number))
        run(resumable(), inputs["dense"], out)
    with pytest.raises(AssertionError):
        same_run(out, unbroken)


def test_every_prompt_comes_once_an_epoch(unbroken):
    met = []
    for step in range(1, 6):
        rows = answers(unbroken / "answers", step)
        met += [row["id"] for row in rows if row["sample"] == 0]
    assert len(met) == 15
    assert sorted(met[:8]) == [f"p{i}" for i in range(8)]
    assert len(set(met[8:])) == 7


def test_the_outputs_of_a_run(unbroken):
    out = unbroken
    assert not (out / "checkpoints").exists()
    steps = [line for line in lines(out) if "reward" in line]
    tracked = [line for line in lines(out) if line.get("evaluation") == "tracked"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in tracked] == [0, 2, 4, 5]
    assert tracked[0]["answers"] == {"math": 16}
    assert [line["lr"] for line in steps] == pytest.approx([3e-3 * (1 - i / 5) for i in range(5)])
    assert list((out / "tensorboard").iterdir())
    row = answers(out / "answers", 3)[0]
    assert {"id", "prompt", "completion", "reward", "parts", "correct", "reason", "finish_reason"} <= set(row)
    assert len(answers(out / "tracked", 4)) == 16


def test_trackers_get_the_numbers_of_the_log_and_a_step_is_traced(inputs, tmp_path, monkeypatch):
    sent, ended = {}, []
    wandb = SimpleNamespace(
        log=lambda values, step: sent.setdefault(step, {}).update(values), finish=lambda: ended.append(1)
    )
    fake = SimpleNamespace(init=lambda **arguments: wandb, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    out = tmp_path / "out"
    run(tiny_run(steps=2, logging=LogSettings(wandb="prism", profile_steps=[2])), inputs["dense"], out)
    logged = {line["step"]: line for line in lines(out)}
    assert {step: values["rl/reward"] for step, values in sent.items()} == {
        step: line["reward"] for step, line in logged.items()
    }
    assert sent[2]["rl/pass_rate/all"] == logged[2]["pass_rate"]["all"]
    assert ended == [1]
    assert [path.name for path in (out / "profile").iterdir()] == ["step_2.json"]


def test_fields_of_megatron_reach_policy_and_reference(inputs, tmp_path, monkeypatch):
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

    built = []
    for each in (TransformerConfig, OptimizerConfig):

        def watched(self, honest=each.__init__, kind=each.__name__, **fields):
            built.append((kind, fields.get("embedding_init_method_std"), fields.get("loss_scale")))
            honest(self, **fields)

        monkeypatch.setattr(each, "__init__", watched)
    block = MegatronBlock({"embedding_init_method_std": 0.5}, optimizer={"loss_scale": 8})
    run(tiny_run(steps=1, megatron=block), inputs["dense"], tmp_path / "out")
    assert built == [
        ("TransformerConfig", 0.5, None), ("OptimizerConfig", None, 8.0), ("TransformerConfig", 0.5, None),
    ]  # fmt: skip


def test_the_reference_is_updated_only_at_its_interval(inputs, unbroken, tmp_path):
    loop = dataclasses.replace(RESUMABLE["loop"], reference_interval=0)
    # Evaluations and checkpoints change no number.
    stage = resumable(loop=loop, evaluate_every=0, checkpoint_every=0)
    run(stage, inputs["dense"], tmp_path / "still")
    still = [line["kl"] for line in lines(tmp_path / "still") if "kl" in line]
    moved = [line["kl"] for line in lines(unbroken) if "kl" in line]
    assert still[:2] == moved[:2]
    assert still[2] > 1.2 * moved[2]


def test_several_minibatches_move_away_from_the_sampler(inputs, tmp_path):
    loop = LoopSettings(prompts_per_step=4, samples_per_prompt=3, minibatches=2)
    metrics = run(tiny_run(loop=loop), inputs["dense"], tmp_path / "out")["last_step"]
    # The second half is trained after the first update, so its weights differ from those of the sampler.
    assert metrics["moved"] > 0
    assert metrics["ratio"] != 1.0
    # The gate compares the log-probabilities before the step.
    assert metrics["gap"]["max_abs"] <= 1e-4


def test_dynamic_sampling_fills_the_batch(inputs, tmp_path):
    loop = LoopSettings(prompts_per_step=2, samples_per_prompt=2, dynamic_sampling=True, max_rounds=5)
    metrics = run(tiny_run(loop=loop, steps=6), inputs["dense"], tmp_path / "out")
    steps = lines(tmp_path / "out")
    assert metrics["consumed_prompts"] == steps[-1]["consumed_prompts"] >= 12
    for step in steps:
        assert step["groups"] - step["dropped_groups"] == 2 or step["groups"] == 10
    assert any(step["groups"] > 2 for step in steps)


def test_groups_of_equal_rewards_move_nothing(inputs, tmp_path):
    from megatron_prism.rl.rewards import RewardSettings

    metrics = run(tiny_run(rewards=RewardSettings()), inputs["dense"], tmp_path / "out")
    assert metrics["last_step"]["dropped_groups"] == metrics["last_step"]["groups"] == 4
    assert "loss" not in metrics["last_step"]
    before, after = weights(inputs["dense"]["model"].path), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_gate_stops_before_a_weight_moves(inputs, tmp_path, monkeypatch):
    from megatron_prism.generation.request import Ending

    honest = Ending.completion

    def lying(self, request):
        request.logprobs[0] -= 0.01
        return honest(self, request)

    monkeypatch.setattr(Ending, "completion", lying)
    with pytest.raises(GateStop, match=r"step 1: trainer and sampler disagree.*0\.01"):
        run(tiny_run(), inputs["dense"], tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint").exists()
    metrics = run(
        tiny_run(gate=GateSettings(action="mask", worst_log_ratio=1e-3)), inputs["dense"], tmp_path / "mask"
    )
    assert metrics["last_step"]["gap"]["masked"] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 64}, "context_length=64 is longer than"),
        ({"loop": LoopSettings(samples_per_prompt=1)}, "samples_per_prompt=1: a group needs"),
        ({"steps": 0}, "steps=0"),
        ({"dtype": "fp16"}, "dtype"),
        (
            {"logging": LogSettings(component_norms_every=2)},
            "component_norms_every=2: only the `train` stage",
        ),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_run(**changes)


def test_no_prompt_fits(inputs, tmp_path):
    with pytest.raises(DataError, match="context_length=1: every prompt is at least as long"):
        run(tiny_run(context_length=1), inputs["dense"], tmp_path / "out")


def test_prompts_that_do_not_fit_are_left_out_and_counted(inputs, tmp_path):
    metrics = run(tiny_run(context_length=8, steps=1), inputs["dense"], tmp_path / "out")
    assert metrics["too_long"] == {"math": 1}
    assert metrics["prompts"] == {"math": 7}
    assert all(row["prompt"] != "A" * 12 for row in answers(tmp_path / "out" / "answers", 1))


def test_code_without_isolation_is_refused_before_any_model_is_loaded(inputs, tmp_path, no_bubblewrap):
    folder = tmp_path / "code"
    (folder / "prompts").mkdir(parents=True)
    problem = {
        "id": "c",
        "domain": "code",
        "prompt": "C",
        "kind": "code",
        "answer": "",
        "tests": ["assert True"],
    }
    (folder / "prompts" / "code.jsonl").write_text(json.dumps(problem) + "\n")
    given = inputs["dense"] | {"prompts": artifact(folder)}
    began = time.perf_counter()
    with pytest.raises(ConfigError, match="sandbox=weak"):
        run(tiny_run(grading=GradingSettings(sandbox="strong")), given, tmp_path / "out")
    assert time.perf_counter() - began < 20


def test_another_architecture_is_refused(inputs, tmp_path):
    other = dataclasses.replace(DENSE, num_layers=2)
    with pytest.raises(CheckpointError, match="num_layers"):
        run(tiny_run(architecture=other), inputs["dense"], tmp_path / "out")


def test_without_a_kl_term_there_is_no_reference(inputs, tmp_path):
    metrics = run(tiny_run(objective=Objective(kl_coefficient=0)), inputs["dense"], tmp_path / "out")
    assert metrics["last_step"]["kl"] == 0
