"""`prism doctor` tries folders, programs and devices by what they do; a broken one is named with its remedy."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_prism.cli.doctor import doctor
from megatron_prism.cli.main import main
from megatron_prism.platform import cluster_checks, folder_checks, folder_probe

PARTITIONS = """\
gpu*|up|30|idle|gpu:h100:8|1-00:00:00
gpu*|up|2|drained*|gpu:h100:8|1-00:00:00
cpu|down|4|mixed|(null)|infinite
"""


def program(folder: Path, name: str, text: str) -> None:
    """A program of that name comes first on PATH."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def named(checks):
    return {check.name: check for check in checks}


def test_a_folder_that_is_fit(tmp_path: Path) -> None:
    checks = named(folder_checks.folder_checks(tmp_path / "runs" / "not yet there"))
    assert all(checks[name].found for name in ("run folder", "flock", "file server's clock")), checks
    assert str(tmp_path) in checks["run folder"].detail
    # Nothing stays, and the folder of the run is not made.
    assert not list(tmp_path.iterdir())


def test_tmpfs_is_local_and_its_space_is_counted() -> None:
    checks = named(folder_checks.folder_checks(Path("/dev/shm")))
    space = os.statvfs("/dev/shm")
    assert f"of {space.f_blocks * space.f_frsize / 2**30:,.0f} GiB" in checks["run folder"].detail
    assert "tmpfs" in checks["run folder"].detail
    assert not checks["shared folder"].found
    assert "--run-dir" in checks["shared folder"].remedy


def test_a_folder_that_cannot_be_written_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--health", "--run-dir", "/proc/1"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unhealthy: run folder: /proc/1 (proc): ")
    assert "--run-dir" in line


def test_a_healthy_machine_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(tmp_path, health=True)
    assert capsys.readouterr().err == ""


def test_a_torch_that_does_not_load_is_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = SimpleNamespace(__spec__=sys.modules["torch"].__spec__)
    monkeypatch.setitem(sys.modules, "torch", broken)
    with pytest.raises(SystemExit):
        main(["doctor", "--health", "--run-dir", str(tmp_path)])
    assert "unhealthy: torch computes: AttributeError" in capsys.readouterr().err


def test_a_file_system_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(folder_checks, "PROBE", tmp_path / "probe.py")
    monkeypatch.setattr(folder_checks, "SECONDS", 0.3)
    before = time.monotonic()
    (check,) = folder_checks.folder_checks(tmp_path)
    assert time.monotonic() - before < 5
    assert not check.found
    assert "did not answer" in check.detail


def test_locks_that_keep_nobody_out_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file:
        assert folder_probe.flock_between_processes(file.fileno(), file.name) == "works"
        # As on Lustre with -o localflock, seen from another node: the call succeeds, and nobody is kept out.
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        assert "got the lock that this one holds" in folder_probe.flock_between_processes(
            file.fileno(), file.name
        )

        def missing(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", missing)
        said = folder_probe.flock_between_processes(file.fileno(), file.name)
        assert said == "flock is not supported (Function not implemented)"


@pytest.mark.parametrize(("ahead", "skew"), [(0.0, 0.0), (90.0, 90.0), (-90.0, -90.0)])
def test_the_skew_of_the_file_servers_clock(
    ahead: float, skew: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - ahead)
    found = folder_probe.probe(str(tmp_path))["skew"]
    assert found == pytest.approx(skew, abs=1)


def test_the_mount_that_holds_a_folder() -> None:
    mounts = (
        "1 0 0:1 / / rw - overlay none rw\n"
        "2 1 0:2 / /data rw - nfs4 server:/data rw\n"
        "3 2 0:3 / /data/my\\040scratch rw shared:1 - fuse.juicefs JuiceFS rw\n"
    )
    kinds = {
        "/home": "overlay",
        "/data": "nfs4",
        "/database": "overlay",
        "/data/my scratch/x": "fuse.juicefs",
    }
    assert {path: folder_checks.file_system(Path(path), mounts) for path in kinds} == kinds
    shared = [
        folder_checks.is_shared(kind) for kind in ("nfs4", "fuse.juicefs", "overlay", "fuse.unheard-of")
    ]
    assert shared == [True, True, False, None]


def test_nodes_that_do_not_share_the_folder_are_named(
    tmp_path: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for srun runs the real probe twice; for the second node the folder is another one."""
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    skip = 'while [ "${1#--}" != "$1" ]; do shift; done'
    program(bin_folder, "srun", f'{skip}\n"$@"\n"$@"')
    good = named(folder_checks.node_checks(tmp_path))
    assert [check.found for check in good.values()] == [True] * 3
    assert not list(tmp_path.glob(".prism*"))
    program(bin_folder, "srun", f'{skip}\n"$@"\n"$1" "$2" "$3" "$4" /nowhere "$6"')
    bad = named(folder_checks.node_checks(tmp_path))
    assert not bad["run folder on all nodes"].found
    assert not bad["flock between nodes"].found
    program(bin_folder, "srun", f'{skip}\n"$@"')
    (check,) = folder_checks.node_checks(tmp_path)
    assert check.detail.startswith("1 of 2 nodes answered")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert folder_checks.node_checks(tmp_path) == []


def test_clocks_and_locks_of_nodes_are_compared() -> None:
    seen = [
        {"host": "a", "time": 100.0, "sees": True, "flock": "held"},
        {"host": "b", "time": 400.0, "sees": True, "flock": "free"},
    ]
    checks = named(folder_checks.describe_nodes(Path("/data"), seen))
    assert not checks["clocks of the nodes"].found
    assert "300.0 s" in checks["clocks of the nodes"].detail
    assert checks["flock between nodes"].detail == "no effect on b"


def test_partitions_of_slurm(bin_folder: Path) -> None:
    program(bin_folder, "sbatch", "echo slurm 24.11")
    program(bin_folder, "sinfo", f"cat <<'E'\n{PARTITIONS}E")
    checks = named(cluster_checks.slurm_checks())
    assert checks["Slurm"].detail == "slurm 24.11"
    assert checks["Slurm partitions"].detail == (
        "gpu* (30 idle, 2 drained, gpu:h100:8, limit 1-00:00:00); cpu (4 mixed, limit infinite, down)"
    )
    program(
        bin_folder, "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    )
    problem = named(cluster_checks.slurm_checks())["Slurm partitions"]
    assert not problem.found
    assert "Unable to contact" in problem.detail


def test_a_program_that_hangs_does_not_hang_the_doctor(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bin_folder, "sinfo", "exec sleep 60")
    monkeypatch.setattr(cluster_checks, "SECONDS", 0.2)
    assert cluster_checks.ask("sinfo") == ("", "sinfo did not answer within 0 s")


def test_ports_of_infiniband(tmp_path: Path) -> None:
    assert not cluster_checks.infiniband(tmp_path).found
    for device, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        for name, text in (("state", state), ("rate", "400 Gb/sec (4X NDR)"), ("link_layer", "InfiniBand")):
            (port / name).write_text(text + "\n")
    check = cluster_checks.infiniband(tmp_path)
    assert check.found
    assert check.detail.startswith("mlx5_0:1 InfiniBand 400 Gb/sec (4X NDR); not active: mlx5_1:1 InfiniBand")
    for state in tmp_path.glob("*/ports/1/state"):
        state.write_text("1: DOWN\n")
    assert not cluster_checks.infiniband(tmp_path).found


def test_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    assert cluster_checks.shared_memory().found
    problem = cluster_checks.shared_memory(tmp_path / "absent")
    assert not problem.found
    assert "--ipc=host" in problem.remedy


def test_what_is_missing_has_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(tmp_path, json_file="-")
    checks = json.loads(capsys.readouterr().out)
    # No installation changes the hardware, and the line on the sandbox says itself what to do.
    silent = {check["name"] for check in checks if not check["found"] and not check["remedy"]}
    assert silent <= {"CUDA", "GPU", "AMX", "AVX-512", "sandbox"}
    remedies = {check["name"]: check["remedy"] for check in checks}
    assert remedies["vllm"] == "pip install 'megatron-prism[vllm]'."
