"""Commands that must answer at once import nothing heavy: one process runs every verb and reports its modules."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    "torch",
    "megatron.core",
    "transformers",
    "matplotlib",
    "nemo_run",
    "pyarrow",
    "math_verify",
    "sympy",
)
ASK = f"""
import contextlib, io, json, sys
from megatron_prism.cli.main import main

said = []
for arguments in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    said.append((code, [name for name in {HEAVY!r} if name in sys.modules], out.getvalue()))
print(json.dumps(said))
"""


def ask(folder, *verbs: str) -> tuple[list[tuple[int, list[str], str]], str]:
    """Exit code, heavy modules imported so far, and stdout of each verb; and stderr of all."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps([verb.split() for verb in verbs])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_help_lists_plans_and_mistakes_load_no_torch(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}")
    good = (
        *("--help", "--version", "recipes", "run --help", "convert --help", "ruler --help"),
        "run shoebox --dry-run",
        "run shoebox model=hybrid preset=short --dry-run",
        "run granite-3.3-8b --tiny --dry-run",
        "run nemotron-h-8b --tiny --dry-run",
        "run shoebox:midtrain midtrain.megatron.transformer.hidden_dropout=0.1 "
        "midtrain.parallel.pipeline_model_parallel_size=2 midtrain.parallel.split=balanced --dry-run",
    )
    wrong = (
        *(
            "",
            "frobnicate",
            "run",
            "run absent",
            "run absent.py",
            "run shoebox nokey=1",
            "run shoebox:absent",
        ),
        "run shoebox midtrain.megatron.ddp.bucket_size=3",
        *("run shoebox midtrain.steps=x", "run nemotron-h-8b", "report absent", "report empty"),
        *("convert import absent out", "convert export absent out", "convert verify absent empty"),
        *("convert quantize absent out", "convert import empty out --dtype bf61"),
        *("merge --model absent=1 --model empty=1 out", "ruler make", "doctor --absent"),
        # Existing folders without a model or a tokenizer; invalid numbers.
        *("convert import empty out", "convert import config out", "convert export config out"),
        *("convert export empty out --max-shard-gb nan", "convert verify empty empty"),
        *("convert verify config config --tolerance nan", "convert verify config config"),
        *("convert quantize config out", "convert quantize config out --samples 0"),
        *("merge --model empty=.5 --model empty=.5 out", "merge --model config=.5 --model config=.5 out"),
        *("ruler make --tokenizer absent out", "ruler make --tokenizer empty out"),
        *("ruler score absent --predictions absent", "eval absent --suite shoebox"),
        *("eval empty --suite shoebox", "eval config", "eval compare empty config"),
        *("run shoebox midtrain=5", "run shoebox midtrain.optimizer.weight_decay=-1"),
        *("run shoebox midtrain.optimizer.weight_decay=nan", "run shoebox midtrain.optimizer.beta1=2"),
    )
    said, errors = ask(tmp_path, *good, *wrong)
    assert [loaded for _, loaded, _ in said] == [[]] * len(said)
    assert [code for code, _, _ in said] == [0] * len(good) + [2] * len(wrong)
    assert "midtrain" in said[6][2]
    # Each mistake is one line.
    assert [line.partition(":")[0] for line in errors.splitlines()] == ["error"] * len(wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "empty"]


def test_the_check_sees_what_is_loaded(tmp_path):
    shoebox = (
        "from megatron_prism.study.registry import recipe_module\nrecipe = recipe_module('shoebox').recipe\n"
    )
    (tmp_path / "heavy.py").write_text("import sympy\n" + shoebox)
    ((code, loaded, _),), _ = ask(tmp_path, "run heavy.py --dry-run")
    assert (code, loaded) == (0, ["sympy"])
