"""The copy of the code that jobs run: what is in it, and what is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.launching import packaging
from megatron_prism.launching.executor import Executor
from megatron_prism.launching.packaging import copy_of_the_code


def sent(kind: str) -> Executor:
    return Executor("executor.yaml", "slurm", kind, shared_run_dir=True, values={}, stages={})


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "code"
    (root / "package").mkdir(parents=True)
    (root / "package/a name.py").write_text("1\n")
    (root / ".gitignore").write_text("*.log\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(packaging, "ROOT", root)
    return root


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_last_commit_is_sent_and_a_file_outside_it_is_named(checkout, tmp_path):
    (checkout / "left.log").write_text("ignored")
    code = copy_of_the_code(sent("git"), tmp_path)
    assert contents(code) == {"package/a name.py": "1\n", ".gitignore": "*.log\n"}
    (checkout / "package/new.py").write_text("2\n")
    with pytest.raises(ConfigError, match=r"lacks package/new\.py in .*include_untracked"):
        copy_of_the_code(sent("git"), tmp_path)
    (checkout / "package/new.py").unlink()
    (checkout / "package/a name.py").write_text("changed\n")
    with pytest.raises(ConfigError, match=r"lacks package/a name\.py"):
        copy_of_the_code(sent("git"), tmp_path)


def test_the_working_tree_is_sent_whole_and_named_by_its_contents(checkout, tmp_path):
    (checkout / "package/new.py").write_text("2\n")
    (checkout / ".gitignore").unlink()
    first = copy_of_the_code(sent("include_untracked"), tmp_path, write=False)
    assert not first.exists()
    assert copy_of_the_code(sent("include_untracked"), tmp_path) == first
    assert contents(first) == {"package/a name.py": "1\n", "package/new.py": "2\n"}
    (checkout / "package/new.py").write_text("3\n")
    second = copy_of_the_code(sent("include_untracked"), tmp_path)
    assert second != first
    assert contents(first)["package/new.py"] == "2\n", "a job in the queue keeps its code"
    assert contents(second)["package/new.py"] == "3\n"


def test_without_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(packaging, "ROOT", tmp_path / "installed")
    assert copy_of_the_code(sent("none"), tmp_path) is None
    with pytest.raises(ConfigError, match="needs a git checkout"):
        copy_of_the_code(sent("git"), tmp_path)


@pytest.mark.parametrize("kind", ["git", "include_untracked"])
def test_links_stay_links_and_a_repository_inside_is_refused(checkout, tmp_path, kind):
    (checkout / "package/link").symlink_to("../package")
    (checkout / "package/nowhere").symlink_to("absent")
    (checkout / "package" / os.fsdecode(b"na\xefve.py")).write_text("3\n")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "second")
    code = copy_of_the_code(sent(kind), tmp_path)
    assert (code / "package/link").readlink() == Path("../package")
    assert (code / "package/nowhere").is_symlink()
    assert (code / "package" / os.fsdecode(b"na\xefve.py")).read_text() == "3\n"
    inside = checkout / "inside"
    inside.mkdir()
    git(inside, "init", "-q")
    git(inside, "commit", "-qm", "own", "--allow-empty")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "third")
    with pytest.raises(ConfigError, match="would leave out inside, a repository of its own"):
        copy_of_the_code(sent(kind), tmp_path)
