"""Stages in containers of a real Docker daemon, with the image `cpu` of the Dockerfile.

docker build --target cpu -t megatron_prism:cpu .
pytest -m slow tests/launching/test_docker.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

STAGES = Path(__file__).with_name("two_stages.py")
IMAGE = "megatron_prism:cpu"


def has_image() -> bool:
    try:
        return subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def prism(tmp_path):
    file = tmp_path / "docker.yaml"
    # The code of this checkout, and not of the day when the image was built.
    file.write_text(
        f"kind: docker\ncontainer_image: {IMAGE}\nnetwork: host\nprocesses_per_node: 2\n"
        "packaging: include_untracked\n"
    )

    def run(*words: str, command: str = "run", code: int = 0, **variables: str):
        options = ["--run-dir", str(tmp_path / "run")]
        target = [str(STAGES), "--executor", str(file)] if command == "run" else []
        ended = subprocess.run(
            [sys.executable, "-m", "megatron_prism", command, *target, *words, *options],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ended.returncode == code, ended.stderr
        return ended

    return run


def test_without_a_daemon_one_line_says_so(prism, tmp_path):
    ended = prism(code=2, DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: kind: docker: no Docker daemon answers (")
    assert not (tmp_path / "run/launch/submissions").exists()


@pytest.mark.slow
@pytest.mark.skipif(not has_image(), reason=f"no Docker daemon with the image {IMAGE}")
class TestInContainers:
    def test_stages_of_one_and_two_processes_run_and_their_files_are_the_user_s(self, prism, tmp_path):
        prism("ranks=2")
        folder = next((tmp_path / "run/artifacts").glob("note-????????????"))
        assert (folder / "note.txt").stat().st_uid == os.getuid()
        rows = json.loads(prism("--json", "-", command="jobs").stdout)
        assert {row["state"] for row in rows} == {"done"}
        assert "done in" in prism("one", command="logs").stdout

    def test_a_failing_stage_is_named_with_its_words(self, prism):
        ended = prism("first=refuse", code=2)
        assert "error: stage 'one' failed: text=refuse: this text is refused; its log is " in ended.stderr

    def test_a_container_that_somebody_removes_fails_its_stage(self, prism):
        """nemo-run alone would wait for ever."""
        removed = threading.Thread(target=remove_the_next_container)
        removed.start()
        ended = prism("first=wait", code=2)
        removed.join()
        assert "error: stage 'one' failed" in ended.stderr


def remove_the_next_container() -> None:
    while not (found := docker("ps", "--quiet", "--filter", f"ancestor={IMAGE}").split()):
        time.sleep(0.2)
    time.sleep(2)
    docker("rm", "--force", *found)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True).stdout
