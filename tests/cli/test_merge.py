"""`prism merge` on the command line."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_cli import one_line_error, prism
from tiny_models import make_checkpoint


def exact_sum(a: torch.Tensor, b: torch.Tensor, *weights: str) -> torch.Tensor:
    """The sum of bf16 tensors in fractions, each element rounded once: to 8 digits, ties to even."""
    x, y = map(Fraction, weights)
    found = []
    for one, other in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
        exact = x * Fraction(one) + y * Fraction(other)
        unit = Fraction(2) ** (math.frexp(float(exact))[1] - 8)
        found.append(float(round(exact / unit) * unit))
    return torch.tensor(found).view(a.shape).bfloat16()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models; the path of the second contains an '='."""
    root = tmp_path_factory.mktemp("merge")
    make_checkpoint("granite", root / "base", torch.bfloat16)
    make_checkpoint("granite", root / "lr=3e-5", torch.bfloat16, confident=True)
    return root / "base", root / "lr=3e-5"


def test_a_merge_in_one_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = ("--model", f"{first}=0.15", "--model", f"{second}=0.85", "--weights", "attention=0.3")
    assert prism("merge", str(out), *arguments, "--json", str(report)) == 0
    said = capsys.readouterr()
    assert "25,216 parameters" in said.out
    assert not said.err
    result = json.loads(report.read_text())
    assert result["weights"]["result"]["attention"] == [0.7, 0.3]
    assert result["weights"]["result"]["mlp"] == [0.15, 0.85]
    name = "model.embed_tokens.weight"
    a, b, merged = (load_file(folder / "model.safetensors")[name] for folder in (first, second, out))
    assert torch.equal(merged, exact_sum(a, b, "0.15", "0.85"))


def test_weights_are_taken_as_they_were_typed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = pair
    name = "model.embed_tokens.weight"
    a, b = (load_file(folder / "model.safetensors")[name] for folder in pair)
    typed = [("0.7", "0.3"), ("1/3", "2/3"), ("0.1234567890123456789012345", "0.8765432109876543210987655")]
    for number, (x, y) in enumerate(typed):
        out = tmp_path / str(number)
        assert prism("merge", str(out), "--model", f"{first}={x}", "--model", f"{second}={y}") == 0
        assert torch.equal(load_file(out / "model.safetensors")[name], exact_sum(a, b, x, y))
    # Weights in fp32 round ties differently: the comparison must notice that.
    assert not torch.equal(exact_sum(a, b, "0.7", "0.3"), (0.7 * a.float() + 0.3 * b.float()).bfloat16())


def test_weights_that_do_not_sum_to_one_and_far_alphas_are_said(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = map(str, pair)
    assert prism("merge", str(tmp_path / "a"), "--model", f"{first}=0.5", "--model", f"{second}=0.6") == 0
    said = capsys.readouterr().err.strip()
    assert said == "note: weights 0.5, 0.6 sum to 1.1, not 1; they are used exactly as they are"
    both = ("--model", first, "--model", second)
    assert prism("merge", str(tmp_path / "b"), *both, "--alpha", "0,1.25", "--format", "megatron") == 0
    assert "alpha 1.25 is outside [0, 1]" in capsys.readouterr().err
    assert (tmp_path / "b/alpha-1.25/architecture.json").is_file()


def test_whose_files_are_kept_is_said_on_stderr_and_in_the_json(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, chat = pair[0], tmp_path / "chat"
    shutil.copytree(pair[1], chat)
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    (chat / "README.md").write_text("a chat model")
    models = ("--model", f"{first}=0.15", "--model", f"{chat}=0.85", "--dtype", "fp16")
    assert prism("merge", str(tmp_path / "out"), *models, "--json", "-") == 0
    said = capsys.readouterr()
    remarks = json.loads(said.out)["remarks"]
    assert [f"note: {remark}" for remark in remarks] == [
        line for line in said.err.splitlines() if line.startswith("note: ")
    ]
    assert any(f"the files of {chat} are kept (it has the largest weight)" in remark for remark in remarks)
    assert any("not copied: README.md" in remark for remark in remarks)
    assert (tmp_path / "out/chat_template.jinja").is_file()
    assert load_file(tmp_path / "out/model.safetensors")["model.norm.weight"].dtype is torch.float16


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model", "{a}", "--model", "{b}=1"), "expected PATH=WEIGHT"),
        (("--model", "{a}=x", "--model", "{b}=1"), "'x' is not a number"),
        (("--model", "{a}=1/0", "--model", "{b}=1"), "'1/0' is not a number"),
        (("--model", "{a}=nan", "--model", "{b}=1"), "'nan' is not a finite number"),
        (("--model", "{a}=1", "--model", "{b}=1", "--weights", "attention"), "COMPONENT=WEIGHT"),
        (("--model", "{a}=1", "--model", "{b}=1", "--weights", "atention=1"), "did you mean 'attention'"),
        (("--model", "{a}=1", "--model", "{b}=1", "--weights", "mlp=1,mlp=2"), "named twice"),
        (("--model", "{a}", "--model", "{b}", "--alpha", "0,b"), "--alpha: 'b'"),
        (("--model", "{a}=1", "--model", "{b}", "--alpha", "0.5"), "give --model {a}"),
        (("--model", "{a}=1", "--model", "{tmp}/none=1"), "no such folder"),
        (("--model", "{a}=1", "--model", "{b}=1", "--method", "ties"), "density"),
        (("--model", "{a}=1", "--model", "{b}=1", "--weights", "mlp=inf"), "not a finite number"),
        (("--model", "{a}", "--model", "{b}", "--alpha", "0,nan"), "not a finite number"),
        (("--model", "{a}=1e308", "--model", "{b}=1e308"), "weight number 1 is 1e+308; use at most"),
        (("--model", "{a}=1", "--base", "{b}", "--method", "dare", "--density", "nan"), "density=nan"),
        (("--model", "{a}=1", "--model", "{b}=1", "--seed", "-1"), "--seed -1"),
        (("--model", "{a}=1", "--model", "{b}=1", "--dtype", "fp8"), "--dtype='fp8'"),
        (
            ("--model", "{a}=1", "--model", "{b}=1", "--tokenizer-from", "{tmp}"),
            "not one of the merged models",
        ),
        ((), "--model"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: tuple[str, ...],
    named: str,
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(a=pair[0], b=pair[1], tmp=tmp_path) for argument in arguments]
    assert prism("merge", str(tmp_path / "out"), *filled) == 2
    assert named.format(a=pair[0]) in one_line_error(capsys)
    assert not list(tmp_path.iterdir())


STUCK = """
import os, sys
from megatron_prism.cli.main import main
from megatron_prism.merging import blocks
blocks.BLOCK = 1000
honest, reads = blocks.TensorBytes.read, []
def read(self, start, out):
    reads.append(1)
    if len(reads) == 20:
        print("half", flush=True)
        sys.stdin.read()
    honest(self, start, out)
blocks.TensorBytes.read = read
main(sys.argv[1:])
"""


def test_a_killed_merge_leaves_nothing_under_the_final_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["merge", str(out), "--model", f"{pair[0]}=0.5", "--model", f"{pair[1]}=0.5"]
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert (tmp_path / "out.partial/model.safetensors").stat().st_size
    began = time.time()
    assert prism(*command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").stat().st_mtime > began - 1
