"""The examples of docs/extending.md are complete: written into a copy of the project, they do what the page says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_tokenizer, randomize

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extending.md").read_text()
NEW_FILE = re.compile(r"new file, `([\w/.]+)`.*?```python\n(.*?)```", re.DOTALL)
DIFF = re.compile(r"```diff\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and the recipes with every change of the page."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("megatron_prism", "recipes"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in NEW_FILE.findall(PAGE):
        assert not (copy / path).exists(), f"{path} is not new"
        (copy / path).write_text(content)
    apply_diffs(copy / "megatron_prism/models/families.py", section("A model family"))
    apply_diffs(copy / "megatron_prism/verification/grade.py", section("A grader"))
    return copy


def apply_diffs(file: Path, text: str) -> None:
    for diff in DIFF.findall(text):
        lines = diff.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        source = file.read_text()
        assert source.count(before) == 1, f"{file.name} does not hold:\n{before}"
        file.write_text(source.replace(before, after))


def prism(project: Path, folder: Path, *commands: str) -> str:
    """Run `prism` commands of the changed project, one after the other in one process; returns the output."""
    program = """if True:
        import json, sys
        from megatron_prism.cli.main import main
        for command in json.loads(sys.argv[1]):
            try:
                main(command)
            except SystemExit as end:
                if end.code:
                    raise
    """
    words = json.dumps([shlex.split(command)[1:] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", program, words],
        cwd=folder,
        env={"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_family_by_the_page_alone_agrees_with_transformers(project, tmp_path):
    import torch
    from transformers import ArceeConfig, ArceeForCausalLM

    config = ArceeConfig(
        vocab_size=700, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    model = ArceeForCausalLM(config)
    randomize(model)
    model.save_pretrained(tmp_path / "HF_DIR")
    make_tokenizer(tmp_path / "HF_DIR")
    (commands,) = COMMANDS.findall(section("A model family"))
    output = prism(project, tmp_path, *commands.splitlines())
    assert output.count("19 of 19 tensors are identical") == 2
    assert "nowhere" in output
    assert (tmp_path / "EXPORTED/config.json").is_file()


def test_a_stage_and_a_recipe_by_the_page_alone_run(project, tmp_path):
    texts = [f"one more text of {number} short words" for number in range(100)]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (commands,) = COMMANDS.findall(section("A recipe"))
    first, second = commands.splitlines()
    prism(project, tmp_path, first)
    counted = json.loads((tmp_path / "runs/words/words/words.json").read_text())
    assert counted["text"] % 7 == 0
    assert counted["text"] > 7 * 60
    output = prism(project, tmp_path, second)
    longer = json.loads((tmp_path / "runs/words/words/words.json").read_text())
    assert longer["text"] == counted["text"] // 7 * 4
    assert "corpus: skipped, already done" in output


def test_a_grader_by_the_page_alone_grades(project, tmp_path):
    (examples,) = re.findall(r"```pycon\n(.*?)```", section("A grader"), re.DOTALL)
    (tmp_path / "examples.txt").write_text(examples)
    done = subprocess.run(
        [sys.executable, "-m", "doctest", "-v", tmp_path / "examples.txt"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(project), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
