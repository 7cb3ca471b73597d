from __future__ import annotations

import pytest

from megatron_prism.pipeline.schedule import Job, seconds_left, startable


def job(name: str, *needs: str, processes: int = 1) -> Job:
    return Job(name, frozenset(needs), processes)


def names(jobs: list[Job]) -> str:
    return "".join(each.name for each in jobs)


def test_jobs_start_in_order_when_their_inputs_are_there() -> None:
    waiting = [job("b", "a"), job("c", "x"), job("d", "a"), job("e")]
    assert names(startable(waiting, {"a"}, free=2, total=2)) == "bd"
    assert names(startable(waiting, {"a"}, free=1, total=2)) == "b"
    assert names(startable(waiting, {"a"}, free=3, total=3)) == "bde"
    assert names(startable(waiting, set(), free=2, total=2)) == "e"


def test_a_job_that_does_not_fit_keeps_its_place() -> None:
    waiting = [job("wide", processes=2), job("small")]
    assert names(startable(waiting, set(), free=1, total=2)) == ""
    assert names(startable(waiting, set(), free=2, total=2)) == "wide"
    assert names(startable(waiting, set(), free=3, total=3)) == "widesmall"


def test_a_job_larger_than_all_starts_alone() -> None:
    waiting = [job("huge", processes=8), job("small")]
    assert names(startable(waiting, set(), free=1, total=2)) == ""
    assert names(startable(waiting, set(), free=2, total=2)) == "huge"


def test_time_left_follows_the_longest_way_through() -> None:
    seconds = {"a": 10.0, "b": 20.0, "c": 5.0, "d": 1.0}
    diamond = [job("a"), job("b", "a"), job("c", "a"), job("d", "b", "c")]
    assert seconds_left(diamond, running={}, seconds=seconds, processes={}, total=1) == 36
    assert seconds_left(diamond, running={}, seconds=seconds, processes={}, total=2) == 31


def test_time_left_counts_what_is_under_way_and_the_processes_it_holds() -> None:
    rest = [job("b", "a"), job("c", "a"), job("d", "b", "c")]
    seconds = {"b": 20.0, "c": 5.0, "d": 1.0}
    assert seconds_left(rest, running={"a": 4.0}, seconds=seconds, processes={"a": 2}, total=2) == 25
    # An unrelated job occupies one of the two processes for a long time.
    running, processes = {"a": 4.0, "x": 100.0}, {"a": 1, "x": 1}
    assert seconds_left(rest, running=running, seconds=seconds, processes=processes, total=2) == 100
    assert seconds_left([], running={"x": 3.0}, seconds={}, processes={"x": 2}, total=2) == 3


def test_a_wide_job_waits_for_all_processes() -> None:
    jobs = [job("a"), job("wide", processes=2)]
    assert seconds_left(
        jobs, running={}, seconds={"a": 3.0, "wide": 4.0}, processes={}, total=2
    ) == pytest.approx(7)
