"""examples/new_family: a family in an installed package is converted like those of this project."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_examples import EXAMPLES, python
from tiny_models import CONFIGS, DENSE, VOCABULARY, make_checkpoint

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.logits import compare, folder_outputs
from megatron_prism.conversion.weights import MegatronWeights
from megatron_prism.errors import ConfigError
from megatron_prism.models import families
from megatron_prism.models.families import architecture_from_config
from megatron_prism.models.mappings import Stacked

PHI3: dict[str, Any] = {**DENSE, "model_type": "phi3", "sliding_window": 9}
TOKENS = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    # pip builds inside the source folder.
    source = shutil.copytree(EXAMPLES / "new_family", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "packages", source], check=True)
    return folder / "packages"


@pytest.fixture
def phi3(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The installed module; forgotten afterwards."""
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setitem(CONFIGS, "phi3", PHI3)
    families._installed_family.cache_clear()
    yield importlib.import_module("phi3")
    families._installed_family.cache_clear()
    del sys.modules["phi3"]


def test_an_installed_family_is_converted_both_ways_and_computes_what_transformers_computes(phi3, tmp_path):
    hf, megatron, exported = (tmp_path / name for name in ("hf", "megatron", "exported"))
    make_checkpoint("phi3", hf)
    for folder in (megatron, exported):
        folder.mkdir()
    import_checkpoint(hf, megatron)
    compared = differences(megatron, hf)
    assert compared.max_abs_logit > 0.5
    assert compared.max_abs_difference <= compared.allowed(1e-4)
    export_checkpoint(MegatronWeights(megatron), exported)
    before, after = load_file(hf / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    assert "model.layers.0.self_attn.qkv_proj.weight" in before
    assert all(torch.equal(after[name], values) for name, values in before.items())
    assert differences(exported, hf).max_abs_difference == 0


def test_rows_of_q_k_and_v_in_the_wrong_order_show_in_the_logits(phi3, tmp_path, monkeypatch):
    make_checkpoint("phi3", tmp_path / "hf")
    unordered = Stacked((lambda architecture: phi3.FusedQKV().hf_shapes(architecture)[0],))
    wrong = phi3.Rule(phi3.QKV, phi3.FUSED[phi3.QKV].hf, unordered)
    monkeypatch.setitem(phi3.FUSED, phi3.QKV, wrong)
    (tmp_path / "megatron").mkdir()
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron")
    compared = differences(tmp_path / "megatron", tmp_path / "hf")
    assert compared.max_abs_difference > compared.allowed(1e-4)


def differences(folder: Path, reference: Path) -> Any:
    both = (folder_outputs(each, TOKENS, torch.float32) for each in (folder, reference))
    return compare(*both, 1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type='longrope'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope_type='yarn'"),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor=0.75"),
        ({"resid_pdrop": 0.1}, "'resid_pdrop'=0.1"),
    ],
    ids=str,
)
def test_what_the_family_does_not_compute_is_refused(phi3, change, said):
    with pytest.raises(ConfigError, match=said):
        architecture_from_config(PHI3 | change)


def test_without_the_package_the_known_families_are_named():
    families._installed_family.cache_clear()
    with pytest.raises(
        ConfigError,
        match=r"^config.json: model_type='phi3' is not supported; supported: granite, .*nemotron_h$",
    ):
        architecture_from_config(PHI3)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("missing_module:FAMILY", "No module named 'missing_module'"),
        ("json:dumps", "function, and not a Family"),
    ],
)
def test_a_package_without_its_family_is_named(tmp_path, monkeypatch, entry, said):
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{families.PLUGINS}]\nbroken = {entry}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=said):
        architecture_from_config({"model_type": "broken"})


@pytest.mark.slow
def test_an_installed_family_is_trained_by_two_processes(installed, phi3, tmp_path, monkeypatch):
    """The processes of a stage find the family by themselves."""
    monkeypatch.setenv("PYTHONPATH", str(installed), prepend=os.pathsep)
    make_checkpoint("phi3", tmp_path / "hf")
    notes = tmp_path / "notes.jsonl"
    texts = [f"Note {number}: the sheep jumped over a fence. " * 20 for number in range(100)]
    notes.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = python(EXAMPLES / "convert_and_train.py", tmp_path / "hf", notes, tmp_path / "out", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "tensors are identical, bit for bit" in made.stdout
