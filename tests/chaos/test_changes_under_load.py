"""Models are scaled, unregistered and registered again while clients ask: no request is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ringserve.server.testing import wait_until
from tests.chaos.descriptors import fd_counts

if TYPE_CHECKING:
    from tests.chaos.conftest import Load, Site

pytestmark = pytest.mark.e2e

CLIENTS = 32


def wait_for_answers(load: "Load", count: int = 50) -> None:
    answered = load.right
    wait_until(lambda: load.right >= answered + count, 20, "answers")


def wait_for_errors(load: "Load", status: int) -> None:
    seen = load.errors[status]
    wait_until(lambda: load.errors[status] > seen, 20, f"an answer of {status}")


def scale(site: "Site", count: int) -> None:
    answer = site.manage("PUT", "/models/actor", min_worker=count, max_worker=count, synchronous="true")
    assert answer.status_code == 200, answer.text


def test_scaling_loses_no_request_and_without_workers_they_are_told(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config="batchSize: 4\n"))
    with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load:
        for count in (3, 1, 2, 1):
            scale(site, count)
            assert len(site.ready_workers("actor")) == count
            wait_for_answers(load)
        assert load.errors.total() == 0
        scale(site, 0)
        wait_for_errors(load, 503)
        scale(site, 1)
        wait_for_answers(load)
    load.check()
    assert set(load.errors) == {503}
    assert all("has no worker to serve inference request" in message for message in load.messages)


def test_unregistering_and_registering_again_loses_no_request_and_no_descriptor(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config="batchSize: 4\n"))
    descriptors = []
    for _ in range(3):
        with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load:
            wait_for_answers(load)
            assert site.manage("DELETE", "/models/actor").status_code == 200
            gone = site.predict("actor", "1")
            assert gone.status_code == 404
            assert gone.json()["type"] == "ModelNotFoundException"
            wait_for_errors(load, 404)
            added = site.manage("POST", "/models", url="actor.mar", initial_workers=1, synchronous="true")
            assert added.status_code == 200, added.text
            wait_for_answers(load)
        load.check()
        assert set(load.errors) == {404}
        wait_until(lambda: site.connections() == 0, 10, "closed connections")
        descriptors.append(fd_counts(site.front_end, site.server.pid))
    assert descriptors[-1] == descriptors[0], "of the front end and the supervisor"


def test_workers_killed_while_they_are_taken_away_are_missed_by_nobody(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    """Death and a change that waits for the same worker's last answers meet in every order."""
    site = start(archive("actor", config="batchSize: 4\n"), workers=2)
    with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load:
        for round_number in range(8):
            wait_for_answers(load)
            workers = site.wait_ready("actor", 2)
            asynchronous = site.manage("PUT", "/models/actor", min_worker=1, max_worker=1)
            assert asynchronous.status_code == 202
            for pid in workers[round_number % 2 :]:
                site.kill_worker(pid)
            wait_for_answers(load)
            scale(site, 2)
        wait_for_answers(load)
        site.kill_worker(site.wait_ready("actor", 2)[0])
        assert site.manage("DELETE", "/models/actor").status_code == 200
    load.check()
    assert set(load.errors) <= {500, 507, 404}
