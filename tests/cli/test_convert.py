"""`prism convert` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file, save_file
from test_cli import one_line_error, prism
from tiny_models import make_checkpoint, make_tokenizer

ODD = ("nan", "inf", "-inf", "-1", "0")
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("granite", tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture
def megatron(hf: Path, tmp_path: Path) -> Path:
    assert prism("convert", "import", str(hf), str(tmp_path / "megatron")) == 0
    return tmp_path / "megatron"


def test_there_and_back_and_verified(
    hf: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert prism("convert", "export", str(megatron), str(tmp_path / "back"), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 25_216
    report = tmp_path / "report.json"
    assert prism("convert", "verify", str(hf), str(tmp_path / "back")) == 0
    assert "29 of 29 tensors are identical, bit for bit" in capsys.readouterr().out
    assert prism("convert", "verify", str(hf), str(megatron), "--logits", "--json", str(report)) == 0
    compared = json.loads(report.read_text())
    assert compared["identical"] == 29
    assert compared["logits"]["max_abs_difference"] <= compared["logits"]["allowed"] <= 1e-4
    assert compared["logits"]["top1_agreement"] == 1.0
    assert compared["logits"]["departs"] is None


def test_logits_are_compared_on_random_tokens_where_no_tokenizer_lies(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(hf, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    arguments = ("convert", "verify", str(bare), str(bare), "--logits", "--json", "-")
    assert prism(*arguments) == 0
    first = capsys.readouterr().out
    assert json.loads(first)["logits"]["input"] == "128 random tokens, seed 1234"
    assert prism(*arguments) == 0
    assert capsys.readouterr().out == first
    text = tmp_path / "text"
    text.write_text("ABC")
    assert prism(*arguments, "--text", str(text)) == 2
    assert "omit --text to use random tokens" in capsys.readouterr().err.splitlines()[-1]
    assert prism("convert", "verify", str(hf), str(bare), "--logits", "--text", str(text), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["logits"]["input"] == f"the tokens of {text}"


def test_the_largest_shard_there_may_be(megatron: Path, tmp_path: Path) -> None:
    for number, size in enumerate(("1e300", "1e-300")):
        out = tmp_path / str(number)
        assert prism("convert", "export", str(megatron), str(out), "--max-shard-gb", size) == 0
        assert len(list(out.glob("*.safetensors"))) == (1, 29)[number]


def test_a_note_on_stderr_stands_in_the_json_too(
    megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(tmp_path / "new")
    path = tmp_path / "new/tokenizer_config.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "A"))
    capsys.readouterr()
    new = str(tmp_path / "new")
    assert (
        prism("convert", "export", str(megatron), str(tmp_path / "out"), "--tokenizer", new, "--json", "-")
        == 0
    )
    said = capsys.readouterr()
    assert "note: config.json: eos_token_id 0 becomes 34, as in the tokenizer" in said.err
    assert all(f"note: {remark}" in said.err for remark in json.loads(said.out)["remarks"])


def test_a_difference_is_named_and_fails(
    hf: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = make_checkpoint("granite", tmp_path / "wrong")
    state = load_file(wrong / "model.safetensors")
    state[Q][3, 4] += 0.5
    save_file(state, wrong / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert prism("convert", "verify", str(megatron), str(wrong), "--logits") == 2
    said = capsys.readouterr()
    assert "28 of 29 tensors are identical" in said.out
    assert f"{Q}" in said.out
    assert "layer 1" in said.out
    assert said.err.strip().splitlines()[-1].startswith("error: ")
    assert "beginning at layer 1" in said.err


def test_the_same_values_in_another_dtype_are_told_apart(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prism("convert", "import", str(hf), str(tmp_path / "b"), "--dtype", "bf16") == 0
    assert prism("convert", "verify", str(hf), str(tmp_path / "b")) == 2
    said = capsys.readouterr()
    assert "float32 and bfloat16" in said.out
    assert "29 tensors differ" in said.err


def test_another_architecture_is_named(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_checkpoint("granite", tmp_path / "other", residual_multiplier=0.5)
    assert prism("convert", "verify", str(hf), str(other)) == 2
    assert "residual_multiplier=0.5" in one_line_error(capsys)


def test_a_model_that_transformers_refuses_is_one_line(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(hf, other)
    (other / "config.json").write_bytes(b"\xef\xbb\xbf" + (other / "config.json").read_bytes())
    assert prism("convert", "verify", str(other), str(hf), "--logits") == 2
    assert f"{other}: transformers cannot load this model" in one_line_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("import", "{tmp}/none", "{tmp}/out"), "no such folder"),
        (("import", "{hf}", "{tmp}/out", "--dtype", "fp8"), "--dtype='fp8'"),
        (("import", "{hf}", "{tmp}/" + "x" * 300), "File name too long"),
        (("import", "x" * 300, "{tmp}/out"), "no such folder"),
        (("import", "{hf}", "{tmp}"), "not an empty folder"),
        (("export", "{hf}", "{tmp}/out"), "architecture.json"),
        (("verify", "{hf}", "{tmp}"), "neither"),
        (("verify", "{hf}", "{hf}", "--logits", "--text", "{tmp}/none"), "--text"),
        (("verify", "{hf}", "{hf}", "--text", "{tmp}/file"), "add --logits"),
        (("verify", "{hf}", "{hf}", "--logits", "--dtype", "keep"), "--dtype keep"),
        *((("verify", "{hf}", "{hf}", "--logits", "--tolerance", odd), "--tolerance") for odd in ODD),
        *((("export", "{hf}", "{tmp}/out", "--max-shard-gb", odd), "--max-shard-gb") for odd in ODD),
        (("quantize", "{hf}", "{tmp}/out", "--samples", "0"), "--samples 0"),
        (("quantize", "{hf}", "{tmp}/out", "--samples", "9" * 30), "--samples 9"),
        (("quantize", "{hf}", "{tmp}/out", "--length", "-1"), "--length -1"),
        (("quantize", "{hf}", "{tmp}/out", "--length", "32"), "calibration"),
        ((), "Missing command"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], named: str, hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    filled = [argument.format(hf=hf, tmp=tmp_path) for argument in arguments]
    assert prism("convert", *filled) == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_tools_run_the_commands_under_their_megatron_names(hf: Path, tmp_path: Path) -> None:
    tools = Path(__file__).parents[2] / "tools"
    merged = warm.python(
        tools / "merge_checkpoints.py", tmp_path / "merged", "--model", f"{hf}=0.5", "--model", f"{hf}=0.5"
    )
    assert merged.returncode == 0, merged.stderr
    weights = load_file(hf / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    done = warm.python(tools / "convert_checkpoint.py", "import", hf, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "imported 25,216 parameters" in done.stdout
    assert not done.stderr.strip()
    assert torch.load(tmp_path / "out/checkpoint/common.pt", weights_only=True) == {}
