"""examples/analysis.py on tiny models, as a script and cell by cell."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import warm
from safetensors.torch import load_file, save_file
from test_examples import EXAMPLES
from tiny_models import make_checkpoint


def test_the_tour_of_the_analyses_runs_and_shows_planted_numbers(tmp_path: Path) -> None:
    base = make_checkpoint("llama", tmp_path / "base")
    state = load_file(base / "model.safetensors")
    grown = {name: 1.25 * tensor for name, tensor in state.items()}
    # "RL" moves on in the same direction.
    further = {name: 1.5 * tensor for name, tensor in state.items()}
    folders = [base]
    for name, tensors in (("midtrained", grown), ("rl", further)):
        folders.append(Path(shutil.copytree(base, tmp_path / name)))
        save_file(tensors, folders[-1] / "model.safetensors", {"format": "pt"})
    done = warm.python(EXAMPLES / "analysis.py", *folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mid-training moved model.layers.0.self_attn.q_proj.weight by 0.2500" in done.stdout
    assert "RL moved model.layers.0.self_attn.q_proj.weight by 0.2000" in done.stdout
    assert "cosine of the two updates: +1.0000" in done.stdout
    assert "midtrained: delta 0.2500, sparsity 0.0 %" in done.stdout
    (rank,) = re.findall(r"effective rank of mid-training's update: ([\d.]+) of 32", done.stdout)
    assert 1 < float(rank) < 32
    assert "point 0: CKA 1.000" in done.stdout, "embeddings were scaled"
    assert {path.suffix for path in tmp_path.glob("delta_by_layer.*")} == {".pdf", ".svg", ".png"}


def test_it_is_a_script_with_cells() -> None:
    text = (EXAMPLES / "analysis.py").read_text()
    assert text.count("\n# %% [markdown]\n") >= 4
    assert text.count("\n# %%\n") >= 4
