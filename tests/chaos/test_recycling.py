"""Workers that have done, grown or lived enough are replaced by fresh ones, and no request is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ringserve.server.testing import wait_until, zombies

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

CLIENTS = 8
# It loads only while `loadable` is there, and keeps what it is told to.
MODEL = """
import os, pathlib

LOADABLE = pathlib.Path(LOADABLE_NAME)
kept = []

def handle(data, context):
    if data is None:
        if not LOADABLE.exists():
            os._exit(4)
        return None
    numbers = []
    for row in data:
        number, _, size = bytes(row["body"]).decode().partition(" ")
        kept.append(b"x" * int(size or 0))
        numbers.append(number)
    return numbers
"""


def fresh_pids(site: "Site", model: str, seen: set[int]) -> set[int]:
    seen |= set(site.ready_workers(model))
    return seen


def test_workers_are_replaced_after_so_many_requests_and_none_is_lost(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config="batchSize: 4\nrecycle: {max_requests: 100}\n"), workers=2)
    with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load:
        first = set(site.wait_ready("actor", 2))
        seen = set(first)
        wait_until(lambda: len(fresh_pids(site, "actor", seen)) >= 7, 40, "five replacements")
        assert len(site.manage("GET", "/models/actor").json()[0]["workers"]) == 2
        # Whatever changes meanwhile is right at the end.
        for count in (1, 3, 2):
            parameters = {"min_worker": count, "max_worker": count, "synchronous": "true"}
            assert site.manage("PUT", "/models/actor", **parameters).status_code == 200
            assert len(site.manage("GET", "/models/actor").json()[0]["workers"]) == count
        assert site.manage("PUT", "/models/actor", min_worker=1, synchronous="true").status_code == 200
    load.check()
    assert load.errors.total() == 0
    assert "recycle.max_requests" in site.server.log
    wait_until(lambda: len(site.server.workers()) == 1, 20, "the end of everybody else")
    assert not first & set(site.server.workers())
    wait_until(lambda: zombies(site.server.pid) == [], 10, "the burial of the dead")


def test_a_worker_that_has_grown_or_lived_enough_is_replaced_when_a_fresh_one_can_be_had(
    archive: Callable[..., Path], start: "Callable[..., Site]", tmp_path: Path
) -> None:
    loadable = tmp_path / "loadable"
    loadable.touch()
    source = MODEL.replace("LOADABLE_NAME", repr(str(loadable)))
    archive("growing", source=source, config="recycle: {max_rss: 150MiB}\n")
    site = start(archive("aging", source=source, config="recycle: {max_age: 2s}\n"))
    [grown], [aged] = site.ready_workers("growing"), site.ready_workers("aging")
    loadable.unlink()
    with site.load("growing", 2) as growing, site.load("aging", 2) as aging:
        assert site.predict("growing", f"1 {200 << 20}").text == "1"
        refusals = ["-growing_1.0 could not be replaced and goes on", "-aging_1.0 could not be replaced and goes on"]
        wait_until(
            lambda: all(each in site.server.log for each in refusals),
            20,
            "replacements that do not load",
        )
        assert (site.ready_workers("growing"), site.ready_workers("aging")) == ([grown], [aged])
        assert site.ping().status_code == 200
        loadable.touch()
        wait_until(lambda: set(site.ready_workers("growing")).isdisjoint({grown}), 20, "a lighter worker")
        wait_until(lambda: set(site.ready_workers("aging")).isdisjoint({aged}), 20, "a younger worker")
    for load in (growing, aging):
        load.check()
        assert load.errors.total() == 0
    assert "recycle.max_rss is 150 MiB" in site.server.log
    assert "recycle.max_age is 2 s" in site.server.log
