"""Old folders of a run: taken over, continued, or named with the reason why not; and what the receipt says about it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from toy_stages import Count, Write

from megatron_prism.errors import DataError
from megatron_prism.pipeline.artifact import Artifact, partial_path
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.pipeline.graph import Graph


@dataclass
class CountNext(Count):
    version: ClassVar[int] = 2


@dataclass
class CountFreely(Count):
    free: dict[str, Any] = field(default_factory=dict)

    def lineage(self, inputs):
        return None


def graph(stage: Count) -> Graph:
    made = Graph("g")
    made.add("count", stage)
    return made


def run(stage: Count, run_dir: Path) -> Artifact:
    return graph(stage).run(run_dir, jobs=1)["count"]


def interrupt(stage: Count, run_dir: Path) -> Path:
    with pytest.raises(DataError, match="interrupted"):
        run(stage, run_dir)
    return partial_path(graph(stage).node("count").folder(run_dir))


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path, caplog):
    short = run(Count(steps=3), tmp_path)
    longer = run(Count(steps=5), tmp_path)
    assert caplog.messages == [], "the older folder is used"
    assert longer.metrics == {"began": 3}
    assert longer.file("count").read_text() == "aaaaa"
    assert longer.receipt.continues == short.fingerprint != longer.fingerprint
    assert short.file("count").read_text() == "aaa", "the shorter artifact stays as it was"
    assert [output.path for output in longer.receipt.outputs] == ["count"]
    assert (tmp_path / "count").resolve() == longer.path.resolve()


def test_a_longer_run_takes_over_an_unfinished_one(tmp_path):
    left = interrupt(Count(steps=4, fail_at=3), tmp_path)
    longer = run(Count(steps=6), tmp_path)
    assert longer.metrics == {"began": 2}
    assert not left.exists()
    # Both attempts are recorded, and which run the first one belonged to.
    assert [attempt["tuning"] for attempt in longer.receipt.attempts] == [{"fail_at": 3}, {"fail_at": 0}]
    assert longer.receipt.continues == Count(steps=4).fingerprint({})
    assert longer.receipt.version == 1


def test_the_run_that_got_furthest_is_continued(tmp_path):
    run(Count(steps=2), tmp_path)
    interrupt(Count(steps=5, fail_at=5), tmp_path)
    run(Count(steps=9, text="b"), tmp_path)
    assert run(Count(steps=7), tmp_path).metrics == {"began": 4}


def test_other_runs_are_not_continued(tmp_path):
    run(Count(steps=3), tmp_path)
    assert run(Count(steps=5, text="b"), tmp_path).metrics == {"began": 0}
    assert run(CountNext(steps=4), tmp_path).metrics == {"began": 0}
    assert run(Count(steps=2), tmp_path).metrics == {"began": 0}, "a state after the last step is of no use"


@dataclass
class CountForgetful(Count):
    """Leaves nothing that a longer run could go on from."""

    def progress(self, folder: Path) -> int:
        return 0

    def why_not_continued(self, folder: Path) -> str:
        return f"{folder.name} has no state"


def test_a_shorter_run_that_lacks_its_state_is_named_with_what_it_lacks(tmp_path, caplog):
    short = run(CountForgetful(steps=2), tmp_path).path.name
    assert run(CountForgetful(steps=3), tmp_path).metrics == {"began": 0}
    reason = f"steps was 2 and is 3, {short} has no state"
    assert caplog.messages == [f"stage 'count': {short} is kept but not used: {reason}"]
    caplog.clear()
    run(CountForgetful(steps=4, text="b"), tmp_path)
    assert "no state" not in caplog.text, "another text is reason enough"


def test_the_receipt_has_the_layout_of_every_attempt(tmp_path):
    interrupt(Count(steps=4, fail_at=2), tmp_path)
    interrupt(Count(steps=4, fail_at=3), tmp_path)
    made = run(Count(steps=4), tmp_path)
    assert [attempt["tuning"]["fail_at"] for attempt in made.receipt.attempts] == [2, 3, 0]
    assert [attempt["world_size"] for attempt in made.receipt.attempts] == [1, 1, 1]
    assert made.receipt.continues == ""


def test_an_old_folder_that_is_not_used_is_named_with_the_reason(tmp_path, caplog):
    old = run(Count(steps=4, text="x"), tmp_path)
    assert caplog.messages == []
    run(Count(steps=4, text="y"), tmp_path)
    assert caplog.messages == [f"stage 'count': {old.path.name} is kept but not used: text was x and is y"]
    caplog.clear()
    run(Count(steps=4, text="y", fail_at=9), tmp_path)
    assert caplog.messages == [], "a tuning field needs no other folder"
    run(CountNext(steps=4, text="y"), tmp_path)
    assert "it was made by version 1 of the stage 'count', which has version 2" in caplog.messages[0]


def test_keys_of_a_mapping_that_one_run_has_and_the_other_lacks_are_named(tmp_path, caplog):
    plain = run(CountFreely(steps=4), tmp_path)
    with_key = run(CountFreely(steps=4, free={"width": 3}), tmp_path)
    run(CountFreely(steps=4, free={"depth": 2}), tmp_path)
    assert caplog.messages == [
        f"stage 'count': {plain.path.name} is kept but not used: free.width was not set and is 3",
        f"stage 'count': {with_key.path.name} is kept but not used: "
        "free.depth was not set and is 2, free.width was 3 and is not set",
    ]


def test_a_folder_of_an_older_release_is_named(tmp_path, caplog):
    """Its receipt has no version, and its fingerprint counted fields that are tuning now."""
    made = run(Count(steps=4), tmp_path)
    folder = made.path.rename(made.path.with_name("count-0123456789ab"))
    receipt = json.loads((folder / "receipt.json").read_text())
    for key in ("version", "lineage", "continues", "attempts"):
        del receipt[key]
    (folder / "receipt.json").write_text(json.dumps(receipt))
    shape = json.loads((tmp_path / "graph.json").read_text())
    shape["stages"][0]["folder"] = f"artifacts/{folder.name}"
    (tmp_path / "graph.json").write_text(json.dumps(shape))
    run(Count(steps=4), tmp_path)
    assert len(caplog.messages) == 1
    assert "count-0123456789ab is kept but not used: it was made by an older version" in caplog.messages[0]
    Artifact.open(folder)


def test_stages_that_only_have_new_inputs_are_not_named(tmp_path, caplog):
    def chain(text: str) -> Graph:
        made = Graph("g")
        made.add("b", Write("b"), left=made.add("a", Write(text)))
        return made

    chain("x").run(tmp_path)
    chain("y").run(tmp_path)
    assert [message.split(":")[0] for message in caplog.messages] == ["stage 'a'"]


def test_a_damaged_graph_file_is_no_reason_to_fail(tmp_path):
    run(Count(steps=4), tmp_path)
    (tmp_path / "graph.json").write_text('{"stages": [{"name": "count"}]}')
    run(Count(steps=4, text="y"), tmp_path)
    (tmp_path / "graph.json").write_text("[")
    run(Count(steps=4, text="z"), tmp_path)
    assert json.loads((tmp_path / "graph.json").read_text())["stages"][0]["config"] == to_mapping(
        Count(steps=4, text="z")
    )
