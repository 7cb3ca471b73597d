from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prism.cli.main import main

RECIPE = '''"""A toy recipe."""
from toy_stages import Interrupt, Write
from megatron_prism.pipeline.graph import Graph

def recipe(text: str = "a", seed: int = 1, rate: float = 0.5, stop: bool = False) -> Graph:
    graph = Graph("toy")
    first = graph.add("first", Write(text, repeats=seed))
    if stop:
        first = graph.add("stop", Interrupt(), left=first)
    graph.add("second", Write("b"), left=first)
    return graph
'''

BROKEN_STAGE = """
from dataclasses import dataclass
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.stage import Stage

@dataclass
class Broken(Stage):
    kind = "broken"

    def run(self, inputs, out):
        return 1 / 0

def recipe():
    graph = Graph("toy")
    graph.add("broken", Broken())
    return graph
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "pipeline"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.py"
    path.write_text(RECIPE)
    return path


def prism(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_help_is_fast_and_imports_no_torch() -> None:
    code = (
        "import sys, megatron_prism.cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'megatron', 'matplotlib', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "recipes", "report", "doctor"):
        assert verb in done.stdout


def test_runs_skips_and_writes_json(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("run", "toy.py", "seed=2", "second.repeats=3", "--json", "result.json")
    assert prism(*command) == 0
    said = capsys.readouterr().err
    assert "[1/2] first: start" in said
    assert "[2/2] second: done in" in said
    result = json.loads(Path("result.json").read_text())
    assert [stage["state"] for stage in result["stages"]] == ["done", "done"]
    assert Path("runs/toy/second/sub/text.txt").read_text() == "aabbb"
    assert prism(*command) == 0
    assert "second: skipped" in capsys.readouterr().err
    assert prism("run", "toy.py", "seed=2", "second.repeats=3", "--from", "second", "--json", "-") == 0
    states = [stage["state"] for stage in json.loads(capsys.readouterr().out)["stages"]]
    assert states == ["skipped", "done"]


def test_a_named_stage_takes_bare_keys_and_ends_the_run(toy: Path) -> None:
    assert prism("run", "toy.py:first", "repeats=3", "--run-dir", "here") == 0
    assert Path("here/first/sub/text.txt").read_text() == "aaa"
    assert not Path("here/second").exists()


def test_dry_run_shows_and_runs_nothing(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("run", "toy.py", "--dry-run", "--json", "-") == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)["stages"]] == ["to do", "to do"]
    assert not Path("runs").exists()
    assert prism("run", "toy.py:first") == 0
    capsys.readouterr()
    assert prism("run", "toy.py", "--dry-run") == 0
    assert "done" in capsys.readouterr().out
    for extra, states in ((["--force"], ["again", "to do"]), (["seed=2"], ["to do", "to do"])):
        assert prism("run", "toy.py", "--dry-run", "--json", "-", *extra) == 0
        assert [row["state"] for row in json.loads(capsys.readouterr().out)["stages"]] == states


def test_dry_run_shows_the_fields_of_megatron(capsys: pytest.CaptureFixture[str]) -> None:
    override = "midtrain.megatron.transformer.attention_dropout=0.1"
    assert prism("run", "shoebox:midtrain", override, "--dry-run", "--json", "-") == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert rows["midtrain"]["remarks"] == [override.removeprefix("midtrain.")]
    assert rows["base"]["remarks"] == []
    assert prism("run", "shoebox:midtrain", override, "--dry-run") == 0
    assert override.replace("midtrain.", "midtrain: ", 1) in capsys.readouterr().out


def test_profile_sets_the_steps_that_a_stage_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_prism.pipeline.graph import Graph

    found = []
    monkeypatch.setattr(Graph, "run", lambda self, *a, **k: found.append(self.node("midtrain").stage) or {})
    assert prism("run", "shoebox:midtrain", "--profile", "3", "--profile", "5") == 0
    assert found[0].logging.profile_steps == [3, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "shoebox", "--profile", "3"], "--profile 3: name the stage whose step is traced"),
        (["run", "shoebox:midtrain", "--profile", "0"], "steps are counted from 1"),
        (["run", "shoebox:tokens", "--profile", "2"], "unknown key 'logging"),
        (["run", "shoebx"], "did you mean 'shoebox'"),
        (["run", "absent.py"], "absent.py: no such recipe file"),
        (["run", "toy.py:frst"], "did you mean 'first'"),
        (["run", "toy.py:"], "expected RECIPE or RECIPE:STAGE"),
        (["run", "toy.py", "sed=1"], "unknown key 'sed'; did you mean 'seed'"),
        (["run", "toy.py", "first.txt=1"], "did you mean 'text'"),
        (["run", "toy.py", "seed=one"], "seed='one' must be of type int"),
        (["run", "toy.py", "seed=true"], "seed=True must be of type int"),
        (["run", "toy.py", "seed=0"], "repeats=0: must be 1 or more"),
        (["run", "toy.py", "first.repeats=two"], "repeats='two': must be a whole number"),
        (["run", "toy.py", "seed"], "expected key=value"),
        (["run", "toy.py", "--from", "x"], "no stage 'x'"),
        (["run", "toy.py", "--json", "absent/x.json"], "is not a writable folder"),
        (["run", "toy.py", "--fast"], "No such option: --fast"),
        (["run"], "Missing argument"),
        (["rum"], "No such command 'rum'"),
        (["report", "absent"], "absent"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    toy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert prism(*arguments) == 2
    assert message in one_line_error(capsys)
    assert not Path("runs").exists()


def test_interrupt_is_130_and_the_rerun_goes_on(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("run", "toy.py", "stop=true") == 130
    assert "run the same command again" in capsys.readouterr().err
    assert prism("run", "toy.py") == 0
    assert "first: skipped" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(toy: Path) -> None:
    """In a stage; what is wrong with a recipe's file is one line (tests/recipes/test_recipe_pages.py)."""
    toy.write_text(BROKEN_STAGE)
    with pytest.raises(ZeroDivisionError):
        main(["run", "toy.py"])


def test_recipe_files_that_cannot_be_used(
    toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two of them have the same length, and all the same time: a bytecode cache would take one for the other.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for text, message in (
        ("def recipe(:\n", "toy.py, line 1"),
        ("x = 1\n", "must define a function recipe(...)"),
        ("def recipe():\n    return 1\n", "recipe() must return a Graph, not int"),
        ("def recipe(seed):\n    pass\n", "parameter 'seed' of recipe() needs a default"),
    ):
        toy.write_text(text)
        os.utime(toy, (1, 1))
        assert prism("run", "toy.py") == 2
        assert message in one_line_error(capsys)


def test_recipes_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("recipes", "--json", "-") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"shoebox"} <= {item["name"] for item in listed}
    assert all(item["description"] for item in listed)
    assert prism("--version") == 0
    assert capsys.readouterr().out.startswith("prism 0.")


def test_doctor_names_what_each_thing_unlocks(capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("doctor", "--json", "-") == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"CUDA", "GPU", "AMX", "memory", "transformer_engine", "mamba_ssm", "vllm", "Slurm"} <= set(checks)
    assert checks["torch"]["found"]
    assert all(check["unlocks"] for check in checks.values())
    if shutil.which("bwrap") is None:
        assert "bwrap is not on PATH" in checks["sandbox"]["detail"]
    else:
        assert checks["sandbox"]["found"], checks["sandbox"]["detail"]
        assert checks["sandbox"]["detail"].startswith("bubblewrap ")


def test_the_installed_command_exits_2(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("prism")
    if not command.exists():
        pytest.skip("the package is not installed with its command")
    done = subprocess.run([command, "run", "nothing"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'nothing'")
