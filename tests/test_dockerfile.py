"""The Dockerfile: what its two images must have, which a builder does not check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
STAGES = {
    found[1]: found[0] for found in re.finditer(r"^FROM \S+ AS (\w+)$.*?(?=^FROM |\Z)", TEXT, re.M | re.S)
}
FINAL = ("cpu", "gpu")


def test_there_are_two_images_and_a_stage_that_compiles():
    assert list(STAGES) == ["cpu", "kernels", "gpu"]


@pytest.mark.parametrize("name", FINAL)
def test_an_image_runs_as_a_user_who_is_not_root_and_is_watched(name):
    lines = STAGES[name].splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    # Kubernetes' runAsNonRoot needs a number.
    assert users[-1:] == ["10001"]
    after = lines[lines.index("USER 10001") :]
    assert not [line for line in after if line.startswith(("RUN ", "COPY "))]
    assert any(line.startswith("HEALTHCHECK ") and '"doctor", "--health"' in line for line in after)


def test_a_container_starts_what_a_launcher_gives_it():
    """nemo-run and Kubernetes give `bash -c ...`, which an ENTRYPOINT would take for its arguments."""
    assert not re.search(r"^ENTRYPOINT", TEXT, re.MULTILINE)


def test_everything_is_pinned():
    images = re.findall(r"^ARG \w+_BASE=(\S+)$", TEXT, re.MULTILINE)
    assert len(images) == 2
    assert all(re.search(r":\d[\w.-]*$", image) for image in images)
    assert re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE) == ["${CPU_BASE}", "${GPU_BASE}", "${GPU_BASE}"]
    versions = dict(re.findall(r"^ARG (CAUSAL_CONV1D|MAMBA_SSM|UV|APEX_COMMIT)=(\S+)$", TEXT, re.MULTILINE))
    assert len(versions["APEX_COMMIT"]) == 40
    assert all(
        re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", versions[name])
        for name in ("CAUSAL_CONV1D", "MAMBA_SSM", "UV")
    )


def test_the_pins_of_the_gpu_image_leave_its_own_torch_alone():
    """The image's torch and the Triton that belongs to it: a pin would install another one over them."""
    kept = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("triton==")
    ]
    pinned = {re.split("[=<>]", line)[0] for line in kept if not line.startswith("#")}
    assert "grep -v '^triton==' constraints.txt" in STAGES["gpu"]
    assert not pinned & {"torch", "triton", "transformer-engine", "flash-attn"}
    assert not [name for name in pinned if name.startswith("nvidia-cu")]
    assert {"megatron-core", "transformers", "nemo-run"} <= pinned
