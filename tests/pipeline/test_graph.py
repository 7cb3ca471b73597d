from __future__ import annotations

import fcntl
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from toy_stages import FailOnce, Fill, Resume, Write

from megatron_prism.errors import ArtifactError, ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact, partial_path
from megatron_prism.pipeline.execution import Observer
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.node import Node


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The texts of the stages that ran, one per line."""
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("TOY_LOG", str(path))
    return path


def ran(log: Path) -> str:
    said = log.read_text().replace("\n", "")
    log.write_text("")
    return said


class Events(Observer):
    """Keeps (event, stage) in a list."""

    def __init__(self, events: list[tuple[str, str]]) -> None:
        self.events = events

    def skipped(self, node: Node, artifact: Artifact) -> None:
        self.events.append(("skipped", node.name))

    def started(self, node: Node) -> None:
        self.events.append(("start", node.name))

    def done(self, node: Node, artifact: Artifact) -> None:
        self.events.append(("done", node.name))


def diamond() -> Graph:
    """a -> b, a -> c, (b, c) -> d."""
    graph = Graph("diamond")
    a = graph.add("a", Write("a"))
    b = graph.add("b", Write("b"), left=a)
    c = graph.add("c", Write("c"), left=a)
    graph.add("d", Write("d"), left=b, right=c)
    return graph


def test_runs_in_order_then_skips(log: Path, tmp_path: Path) -> None:
    run_dir, events = tmp_path / "run", []
    artifacts = diamond().run(run_dir, observer=Events(events))
    assert ran(log) == "abcd"
    assert artifacts["d"].file("sub/text.txt").read_text() == "abacd"
    assert artifacts["d"].metrics == {"length": 5}
    assert (run_dir / "d").resolve() == artifacts["d"].path.resolve()
    assert events == [(event, name) for name in "abcd" for event in ("start", "done")]
    assert artifacts["d"].receipt.inputs == {
        "left": artifacts["b"].fingerprint,
        "right": artifacts["c"].fingerprint,
    }
    events.clear()
    diamond().run(run_dir, observer=Events(events))
    assert ran(log) == ""
    assert events == [("skipped", name) for name in "abcd"]
    shape = json.loads((run_dir / "graph.json").read_text())
    assert [stage["name"] for stage in shape["stages"]] == ["a", "b", "c", "d"]
    assert not list((run_dir / "artifacts").glob("*.partial"))


def test_target_runs_only_what_it_needs(log: Path, tmp_path: Path) -> None:
    diamond().run(tmp_path / "run", target="c")
    assert ran(log) == "ac"
    with pytest.raises(ConfigError, match="no stage 'e'"):
        diamond().run(tmp_path / "run", target="e")


def test_from_and_force(log: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    diamond().run(run_dir)
    ran(log)
    diamond().run(run_dir, start_from="b")
    assert ran(log) == "bd"
    diamond().run(run_dir, target="c", force=True)
    assert ran(log) == "c"
    diamond().run(run_dir, force=True)
    assert ran(log) == "abcd"
    with pytest.raises(ConfigError, match="no stage 'bb'"):
        diamond().run(run_dir, start_from="bb")


def test_a_change_reruns_what_depends_on_it_and_keeps_both(log: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = diamond().run(run_dir)["d"]
    ran(log)
    changed = diamond()
    changed.override({"b.repeats": 2})
    second = changed.run(run_dir)["d"]
    assert ran(log) == "bd"
    assert second.path != first.path
    assert first.path.exists()
    assert (run_dir / "d").resolve() == second.path.resolve()
    quieter = diamond()
    quieter.override({"a.log_every": 5})
    quieter.run(run_dir)
    assert ran(log) == ""


def test_an_override_reaches_what_is_derived_from_it(tmp_path: Path) -> None:
    """Also over two stages, in any order of keys, and when a second call changes something else."""

    def graph() -> Graph:
        made = Graph("derived")
        a = made.add("a", Write("first"))
        b = made.add("b", Write("b"), lambda stage: replace(stage, text=a.stage.text), left=a)
        made.add("c", Write("c", repeats=9), lambda stage: replace(stage, text=b.stage.text), left=b)
        return made

    plain = graph()
    assert [node.stage.text for node in plain.nodes.values()] == ["first"] * 3
    changed = graph()
    changed.override({"c.repeats": 2, "a.text": "other"})
    changed.override({"b.repeats": 5})
    assert [node.stage.text for node in changed.nodes.values()] == ["other"] * 3
    assert [node.stage.repeats for node in changed.nodes.values()] == [1, 5, 2]
    assert changed.nodes["c"].fingerprint != plain.nodes["c"].fingerprint


def test_an_override_may_not_contradict_what_is_derived() -> None:
    graph = Graph("derived")
    a = graph.add("a", Write("first"))
    graph.add("b", Write("b"), lambda stage: replace(stage, text=a.stage.text), left=a)
    with pytest.raises(ConfigError, match=r"stage 'b': text=mine contradicts .* the value first is derived"):
        graph.override({"b.text": "mine"})
    graph.override({"b.text": "both", "a.text": "both"})
    assert graph.node("b").stage.text == "both"


def test_branches_share_their_prefix(log: Path, tmp_path: Path) -> None:
    graph = Graph("study")
    for branch in ("x", "y"):
        base = graph.add(f"base_{branch}", Write("base"))
        graph.add(f"tuned_{branch}", Write(branch), left=base)
    artifacts = graph.run(tmp_path / "run")
    assert ran(log) == "basexy"
    assert artifacts["base_x"].path == artifacts["base_y"].path


def test_goes_on_after_a_failure(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = tmp_path / "block"
    block.touch()
    monkeypatch.setenv("TOY_BLOCK", str(block))
    graph = Graph("g")
    a = graph.add("a", Write("a"))
    fails = graph.add("b", FailOnce("b"), left=a)
    with pytest.raises(DataError, match=r"blocked\.jsonl"):
        graph.run(tmp_path / "run")
    assert not fails.folder(tmp_path / "run").exists()
    block.unlink()
    made = graph.run(tmp_path / "run")
    assert ran(log) == "ab"
    assert [output.path for output in made["b"].receipt.outputs] == ["sub/text.txt"]


def test_a_resumable_stage_finds_what_was_left(tmp_path: Path) -> None:
    graph = Graph("g")
    graph.add("r", Resume())
    with pytest.raises(DataError):
        graph.run(tmp_path)
    assert graph.run(tmp_path)["r"].metrics == {"resumed_from": 1}


def test_a_damaged_artifact_is_refused_until_forced(log: Path, tmp_path: Path) -> None:
    artifact = diamond().run(tmp_path / "run")["a"]
    (artifact.path / "sub" / "text.txt").unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        diamond().run(tmp_path / "run")
    diamond().run(tmp_path / "run", target="a", force=True)
    assert artifact.file("sub/text.txt").exists()


def test_a_second_process_is_told(tmp_path: Path) -> None:
    graph = Graph("g")
    folder = graph.add("a", Write("a")).folder(tmp_path)
    folder.parent.mkdir(parents=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another process"):
            graph.run(tmp_path)
    assert not folder.exists()
    graph.run(tmp_path)
    assert folder.exists()


def test_overrides() -> None:
    graph = diamond()
    graph.override({"a.text": "x", "b.inner.lr": 0.5})
    graph.override({"repeats": 4, "inner.lr": 0.25}, target="c")
    assert graph.node("a").stage == Write("x")
    assert graph.node("b").stage.inner.lr == 0.5  # type: ignore[attr-defined]
    assert graph.node("c").stage.repeats == 4  # type: ignore[attr-defined]
    assert graph.node("c").stage.inner.lr == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="stage 'a': unknown key 'texxt'; did you mean 'text'"):
        graph.override({"a.texxt": "x"})
    with pytest.raises(ConfigError, match="unknown key 'repeats'"):
        graph.override({"repeats": 4})
    with pytest.raises(ConfigError, match="did you mean 'repeats'"):
        graph.override({"repeat": 4}, target="c")


def test_a_graph_refuses_double_names_and_foreign_inputs() -> None:
    graph, other = diamond(), diamond()
    with pytest.raises(ConfigError, match="two stages are called 'a'"):
        graph.add("a", Write())
    with pytest.raises(ConfigError, match="not a stage of this recipe"):
        graph.add("e", Write(), left=other.node("a"))


def test_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to this run folder"):
        diamond().run(tmp_path / "file" / "run")


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        graph = Graph("g")
        graph.add("a", Write("a"))
        fill = graph.add("b", Fill())
        with pytest.raises(DataError, match=r"stage 'b': the disk of .* is full"):
            graph.run(disk / "run")
        assert not fill.folder(disk / "run").exists()
        assert graph.node("a").folder(disk / "run").exists()
        os.remove(partial_path(fill.folder(disk / "run")) / "big")
        fill.stage = Fill(megabytes=1)
        assert graph.run(disk / "run")["b"].receipt.outputs[0].size == 1 << 20
    finally:
        subprocess.run(["umount", str(disk)], check=True)
