"""A copy of the code for the jobs, so that later edits do not reach a job that waits in the queue.

nemo-run's own packager makes an archive of the last commit for every task, and silently leaves out what is not
committed. Here one copy serves all tasks, and a file that would be left out is named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.launching.executor import Executor
from megatron_prism.launching.job_file import LAUNCH
from megatron_prism.platform.source_tree import ROOT

SHOWN = 3


def copy_of_the_code(executor: Executor, run_dir: Path, *, write: bool = True) -> Path | None:
    """The folder with the copy, named by its contents; None if the nodes run what is installed there.

    Args:
        write: make the folder; otherwise only its name is computed and the tree is checked.

    Raises:
        ConfigError: if the code is not a git checkout, or `packaging: git` would leave a file out.
    """
    if executor.packaging == "none":
        return None
    root = ROOT
    if _git(root, "rev-parse", "--is-inside-work-tree") is None:
        raise ConfigError(
            f"{executor.file}: packaging: {executor.packaging} needs a git checkout of the code, which {root} is not; "
            "use packaging: none"
        )
    if executor.packaging == "git":
        _refuse_changes(root, executor)
        name = _git(root, "rev-parse", "HEAD") or ""
        files = _listed(root, "ls-tree", "-r", "--name-only", "-z", "HEAD")
    else:
        files = _listed(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        # Not those that were deleted since the last commit.
        files = [file for file in files if os.path.lexists(root / file)]
        name = _hash(root, _without_submodules(root, files, executor))
    _without_submodules(root, files, executor)
    folder = run_dir.resolve() / LAUNCH / f"code-{name[:12]}"
    if write and not folder.exists():
        _copy(root, files, folder)
    return folder


def _without_submodules(root: Path, files: list[str], executor: Executor) -> list[str]:
    """The files, if none of them is a submodule, whose contents git does not list."""
    for file in files:
        if (root / file).is_dir() and not (root / file).is_symlink():
            raise ConfigError(
                f"{executor.file}: packaging: {executor.packaging} would leave out {file}, a repository of its own in "
                f"{root}; use packaging: none, with the code installed on the nodes"
            )
    return files


def _refuse_changes(root: Path, executor: Executor) -> None:
    changed = [
        line[3:]
        for line in _listed(root, "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z")
    ]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ConfigError(
            f"{executor.file}: packaging: git sends the last commit, which lacks {', '.join(changed[:SHOWN])}{more} in "
            f"{root}; commit, or use packaging: include_untracked"
        )


def _copy(root: Path, files: list[str], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".code-") as made:
        target = Path(made) / "code"
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            # A link stays one, so that it means the same in the copy if it is relative.
            shutil.copy2(root / file, target / file, follow_symlinks=False)
        try:
            target.rename(folder)
        except OSError:
            # Another submission has made the same copy in the meantime.
            if not folder.is_dir():
                raise


def _hash(root: Path, files: list[str]) -> str:
    found = hashlib.sha256()
    for file in files:
        path = root / file
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        found.update(os.fsencode(file) + b"\0" + hashlib.sha256(content).digest())
    return found.hexdigest()


def _listed(root: Path, *arguments: str) -> list[str]:
    return [each for each in (_git(root, *arguments) or "").split("\0") if each]


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails."""
    try:
        ended = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        return None
    return ended.stdout.strip("\n") if ended.returncode == 0 else None
