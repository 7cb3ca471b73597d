"""The wheel, built from the source distribution and used outside the checkout: it contains recipes and mixtures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("megatron_prism", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(what: str, source: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(out)], cwd=source, capture_output=True, text=True, check=True
    )
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the contents of the wheel."""
    here = tmp_path_factory.mktemp("wheel")
    source = here / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    with tarfile.open(build("build_sdist", source, here)) as archive:
        archive.extractall(here / "unpacked", filter="data")
    (unpacked,) = (here / "unpacked").iterdir()
    with zipfile.ZipFile(build("build_wheel", unpacked, here)) as archive:
        archive.extractall(here / "site")
    return here / "site"


def prism(installed: Path, tmp_path: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_prism", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_are_found_and_build_their_graphs(installed, tmp_path):
    listed = [row["name"] for row in json.loads(prism(installed, tmp_path, "recipes", "--json", "-"))]
    files = [path.stem for path in (ROOT / "recipes").glob("*.py")]
    assert len(listed) == len(files)
    # Checked with a table that is a data file of the package.
    field = "megatron.transformer.attention_dropout=0.1"
    plan = json.loads(
        prism(installed, tmp_path, "run", "shoebox", f"midtrain.{field}", "--dry-run", "--json", "-")
    )
    assert {stage["stage"]: stage["remarks"] for stage in plan["stages"]}["midtrain"] == [field]
    prism(installed, tmp_path, "run", "nemotron-h-8b", "--tiny", "long_context=true", "--dry-run")


def test_it_was_the_wheels_own_code_and_mixtures(installed, tmp_path):
    code = (
        "import megatron_prism.data.mixture as m; from megatron_prism.platform.source_tree import recipes_folder\n"
        "print(m.__file__); print(recipes_folder()); print(len(m.packaged_mixtures()))\n"
        "import megatron_prism.evaluation.suites.yaml_definition as s; print(*s.packaged_suites())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    module, folder, count, *suites = done.stdout.split()
    assert Path(module).is_relative_to(installed)
    assert Path(folder) == installed / "megatron_prism" / "_recipes"
    assert int(count) == len(list((ROOT / "recipes/mixtures").glob("*.yaml")))
    assert suites == ["reasoning-variants", "reasoning", "shoebox"]
