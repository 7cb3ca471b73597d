"""Fetch what `run.py` needs beside the image's packages: the wheels of wheels.txt and mamba_ssm's Triton kernels.

    python benchmarks/gpu/fetch_wheels.py --python-version 3.12

Run it on a machine with a network and with torch, pip, setuptools and wheel; carry the folder `benchmarks/gpu/wheels`.
`wheels/site` is the unpacked wheels; `wheels/mamba_ssm` is the Python part of mamba_ssm's source distribution, whose
Mamba-2 scan needs Triton only (triton_scan.py). Nothing is compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAMBA = "mamba-ssm==2.3.2.post1"
PARTS = ("ops", "utils")
LIMIT = 60 * 2**20


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *arguments]
    subprocess.run(command, check=True, env=os.environ | {"MAMBA_SKIP_CUDA_BUILD": "TRUE"})


def fetch_wheels(folder: Path, python_version: str) -> None:
    """Download the wheels for that Python on x86-64 Linux, and unpack them to `site`."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (28, 24, 17)] + ["manylinux2014_x86_64"]
    options = [option for name in platforms for option in ("--platform", name)]
    with tempfile.TemporaryDirectory() as downloads:
        _pip(
            *("-r", str(HERE / "wheels.txt"), "-d", downloads, "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", python_version, *options),
        )
        for wheel in Path(downloads).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "site")


def fetch_mamba(folder: Path) -> None:
    """Download mamba_ssm's source distribution and keep the modules that the scan imports."""
    with tempfile.TemporaryDirectory() as downloads:
        _pip(MAMBA, "--no-binary", ":all:", "--no-build-isolation", "-d", downloads)
        with tarfile.open(next(Path(downloads).glob("*.tar.gz"))) as archive:
            archive.extractall(downloads, filter="data")
        source = next(Path(downloads).glob("*/mamba_ssm"))
        for part in PARTS:
            shutil.copytree(source / part, folder / "mamba_ssm" / part)
        shutil.copy(source.parent / "LICENSE", folder / "mamba_ssm" / "LICENSE")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python-version", default="3.12", help="of the image")
    parser.add_argument("--out", type=Path, default=HERE / "wheels")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    fetch_wheels(arguments.out, arguments.python_version)
    fetch_mamba(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 2**20:.0f} MiB: too much to carry")


if __name__ == "__main__":
    main()
