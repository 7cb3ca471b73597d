"""`prism analyze weights` on the command line: tables, JSON, Parquet, figures, and one line for a mistake."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from test_cli import one_line_error, prism
from tiny_models import make_checkpoint

DOCS = Path(__file__).parents[2] / "docs" / "analysis.md"


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base, its model after mid-training (all weights times 1.25), and that after RL (one tensor moved)."""
    root = tmp_path_factory.mktemp("trio")
    base = make_checkpoint("granite", root / "base")
    state = load_file(base / "model.safetensors")
    grown = {name: 1.25 * tensor for name, tensor in state.items()}
    moved = {**grown, "model.layers.1.self_attn.q_proj.weight": torch.zeros(32, 32)}
    for name, tensors in (("midtrained", grown), ("rl", moved)):
        shutil.copytree(base, root / name)
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    return [str(root / name) for name in ("base", "midtrained", "rl")]


def test_tables_json_rows_and_figures(
    trio: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "weights.json"
    assert prism("analyze", "weights", *trio, "--out", str(out), "--json", str(file)) == 0
    shown = capsys.readouterr().out
    assert "base → midtrained" in shown
    document = json.loads(file.read_text())
    assert document == json.loads((out / "weights.json").read_text())
    first, second = document["models"]
    assert first["all"]["norm_delta"] == pytest.approx(0.25, rel=1e-6)
    assert first["sub_components"]["attention.q"]["mean_delta"] == pytest.approx(0.25, rel=1e-6)
    # Two of three query projections moved by 25 %, one by 100 %.
    assert second["sub_components"]["attention.q"]["mean_delta"] == pytest.approx(0.5, rel=1e-6)
    assert "0.2500" in shown
    assert "0.5000" not in shown, "components are shown, and the mean of attention's tensors is smaller"
    rows = parquet.read_table(out / "tensors.parquet").to_pylist()
    (zeroed,) = (
        row["delta"] for row in rows if row["model"] == "rl" and "1.self_attn.q_proj" in row["tensor"]
    )
    assert zeroed == pytest.approx(1.0)
    names = {path.name for path in (out / "figures").iterdir()}
    assert {f"delta_by_layer.{kind}" for kind in ("pdf", "svg", "png")} <= names
    assert all(path.stat().st_size > 2000 for path in (out / "figures").iterdir())
    # Each key of the document and each column of the rows has its definition in the documentation.
    defined = set(re.findall(r"`([\w.%]+)`", DOCS.read_text()))
    assert keys(document) - first["sub_components"].keys() - {"midtrained", "rl"} <= defined
    assert rows[0].keys() <= defined


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_json_on_stdout_is_only_json(trio: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prism("analyze", "weights", *trio[:2], "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "megatron_prism.analysis.weights/1"


def test_mistakes_are_one_line_and_leave_nothing(
    trio: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for arguments, expected in (
        ([trio[0]], "Missing argument"),
        ([trio[0], trio[0]], "is the base itself"),
        ([trio[0], str(tmp_path / "nowhere")], "nowhere: no such folder"),
        ([*trio, "--out", str(taken)], "already exists"),
        ([*trio, "--json", str(tmp_path / "no" / "file")], "not a writable folder"),
    ):
        assert prism("analyze", "weights", *arguments) == 2
        assert expected in one_line_error(capsys)
    broken = Path(shutil.copytree(trio[1], tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    assert prism("analyze", "weights", trio[0], str(broken), "--out", str(tmp_path / "result")) == 2
    assert "'model.norm.weight' holds nan" in one_line_error(capsys)
    assert not list(tmp_path.glob("result*"))
