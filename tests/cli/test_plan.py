"""`prism plan`: what it shows, and what it refuses in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from megatron_prism.cli.main import main
from megatron_prism.planning.gpu_profile import FOLDER


def plan(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def result(*arguments: str, folder) -> dict:
    assert plan(*arguments, "--json", str(folder / "plan.json")) == 0
    return json.loads((folder / "plan.json").read_text())


def test_a_whole_recipe_without_data_or_checkpoint(tmp_path, capsys):
    found = result("granite-3.3-8b", "long_context=true", "rl=true", folder=tmp_path)
    stages = {each["stage"]: each for each in found["stages"]}
    train = stages["midtrain"]
    assert train["fits"]
    assert train["gpu_hours"] == pytest.approx(8 * train["hours"])
    # 25,000 steps of 128 rows of 8,192 tokens, and validations and checkpoints in addition.
    seconds = 25_000 * 128 * 8192 / 8 / train["tokens_per_second_per_gpu"]
    assert 1 < train["hours"] * 3600 / seconds < 1.05
    assert stages["rl_extend"]["seconds"]["steps"] == pytest.approx(
        1000 * stages["rl_extend"]["step_seconds"]
    )
    # 30.9B tokens at 4 bytes or less; a model of 8.17B parameters in bf16.
    assert 50 < stages["tokens"]["disk_gb"] < 130
    assert stages["merge"]["disk_gb"] == pytest.approx(16.34, abs=0.01)
    # Two checkpoints of weights, main weights and moments next to the finished model.
    assert train["disk_peak_gb"] == pytest.approx(8.17 * (2 + 2 * 14), rel=1e-3)
    assert stages["ruler_base"]["gpus"] == 1
    assert "total" in capsys.readouterr().out


def test_evaluation_takes_the_time_of_its_answers(tmp_path, capsys):
    arguments = ("granite-3.3-8b", "evaluate=true", "suites=reasoning,general")
    stages = {each["stage"]: each for each in result(*arguments, folder=tmp_path)["stages"]}
    # 590 problems of mathematics with 64 answers each, 930 others with 3.
    assert "40,550 answers" in stages["evaluate_base"]["remarks"][0]
    seconds = stages["evaluate_base"]["seconds"]
    assert sum(seconds.values()) == pytest.approx(3600 * stages["evaluate_base"]["hours"])
    assert seconds["math500"] == pytest.approx(500 / 30 * seconds["aime24"], rel=0.2)
    assert stages["harness_base"]["remarks"] == ["time is not estimated"]
    assert "harness_base, harness_midtrain: time is not estimated\n" in capsys.readouterr().out
    few = result(*arguments, "evaluate_base.limit=3", folder=tmp_path)["stages"]
    assert f"{3 * (4 * 64 + 3 * 3)} answers" in str(few)


def test_analyses_do_not_seem_to_take_no_time(tmp_path):
    stages = {each["stage"]: each for each in result("shoebox", folder=tmp_path)["stages"]}
    for name in ("weights", "direction", "spectrum", "cka", "trajectory", "confidence", "landscape"):
        assert stages[name]["remarks"] == ["time is not estimated"], name


def test_one_stage_is_explained(capsys, tmp_path):
    found = result("granite-3.3-8b:midtrain", "--explain", folder=tmp_path)
    (stage,) = found["stages"]
    said = capsys.readouterr().out
    for word in ("optimizer", "activations", "█", "peak", "of 80 GB", "matrix", "attention"):
        assert word in said
    parts = stage["memory_gb"]
    held = sum(
        parts[name] for name in ("weights", "gradients", "optimizer", "communication", "fixed", "slack")
    )
    passing = parts["activations"] + max(parts["working"], parts["loss"])
    assert stage["total_gb"] == pytest.approx(held + passing)
    assert stage["headroom_gb"] == pytest.approx(80 - stage["total_gb"])
    assert stage["step_seconds"] == pytest.approx(sum(stage["step_parts"].values()))


def test_a_search_shows_the_best_and_the_reasons(capsys, tmp_path):
    found = result("granite-4.0-micro:midtrain", "--gpus", "2", folder=tmp_path)
    search = found["searches"]["midtrain"]
    assert search["ranked"][0]["layout"] in found["stages"][0]["layout"] + ", micro-batch 1"
    assert sum(search["refused"].values()) > 0
    said = capsys.readouterr().out
    assert "layouts that fit" in said
    assert "refused" in said
    own = result("granite-4.0-micro:midtrain", folder=tmp_path)
    assert own["searches"] == {}


def test_overrides_and_a_gpu_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "h100.yaml").read_text()) | {"memory": 20e9}))
    found = result("granite-3.3-8b:midtrain", "recompute=full", "--gpu", str(path), folder=tmp_path)
    assert not found["stages"][0]["fits"]
    assert "recompute full" in found["stages"][0]["layout"]
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["granite-3.3-8"], "no recipe 'granite-3.3-8'; did you mean 'granite-3.3-8b'?"),
        (["granite-3.3-8b:midtrian"], "no stage 'midtrian'; did you mean 'midtrain'?"),
        (["granite-3.3-8b", "--gpu", "h10"], "--gpu h10: no such profile; did you mean 'h100'?"),
        (["granite-3.3-8b", "--gpus", "0"], "--gpus 0: must be above 0"),
        (["granite-3.3-8b:midtrain", "recompte=full"], "unknown key 'recompte'; did you mean 'recompute'?"),
        (["shoebox", "--choose-layouts"], "no published model's recipe is called 'shoebox'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert plan(*arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said


def test_a_plan_loads_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from megatron_prism.cli.main import main\n"
        "try: main(['plan', 'granite-3.3-8b', 'rl=true', 'long_context=true'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'megatron.core' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
