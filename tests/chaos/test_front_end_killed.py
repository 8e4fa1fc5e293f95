"""Front ends die and hang under load: the others go on, nobody is refused, and what died comes back."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ringserve.server.testing import wait_until
from tests.chaos.descriptors import fd_counts

if TYPE_CHECKING:
    from tests.chaos.conftest import Load, Site

pytestmark = pytest.mark.e2e

CLIENTS = 32
KILLS = 6
CONFIG = "batchSize: 4\n"
WORDS = ("", "sleep:0.001")


def connections(site: "Site", pid: int) -> int:
    """How many clients a front end is connected with."""
    port = int(site.server.inference_url.rpartition(":")[2])
    return sum(
        1
        for each in psutil.Process(pid).net_connections("tcp")
        if each.laddr.port == port and each.status == "ESTABLISHED"
    )


def wait_for_answers(load: "Load", count: int = 2 * CLIENTS) -> None:
    answered = load.right
    wait_until(lambda: load.right >= answered + count, 20, "answers")


def wait_front_ends(site: "Site", without: int) -> list[int]:
    """Two again, after `without` is gone."""

    def both() -> bool:
        pids = site.server.front_ends()
        return len(pids) == 2 and without not in pids

    wait_until(both, 30, "a new front end")
    return site.server.front_ends()


def share_work(site: "Site", pid: int) -> None:
    """Wait until new clients have reached this front end and were answered."""

    def reached() -> bool:
        with site.load("actor", CLIENTS) as load:
            wait_for_answers(load)
            taken = connections(site, pid)
        load.check()
        assert load.errors.total() == 0
        return taken > 0

    wait_until(reached, 60, f"connections of front end {pid}")


def check_apart_from(load: "Load", lost_max: int) -> None:
    """Every request was answered once and rightly, but those of connections that were cut: one each, at the most."""
    assert load.wrong == []
    assert load.refused == 0
    assert load.errors.total() == 0, load.messages
    assert load.answered + len(load.lost) == load.sent
    assert len(load.lost) <= lost_max, load.lost
    assert not any("Timeout" in each for each in load.lost)


def test_killed_front_ends_cost_only_the_requests_of_their_own_connections(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=CONFIG), frontends=2)
    descriptors, fresh = [], -1
    for _ in range(2):
        cut = 0
        with site.load("actor", CLIENTS, words=WORDS) as load:
            for _ in range(KILLS // 2):
                wait_for_answers(load)
                before = set(site.server.front_ends())
                doomed = max(before, key=lambda pid: connections(site, pid))
                os.kill(doomed, signal.SIGSTOP)  # its connections are counted when no more can come
                cut += connections(site, doomed)
                os.kill(doomed, signal.SIGKILL)
                wait_for_answers(load)
                (fresh,) = set(wait_front_ends(site, doomed)) - before
            wait_for_answers(load)
        check_apart_from(load, cut)
        assert load.lost, "nobody was connected with what was killed"
        share_work(site, fresh)
        descriptors.append(fd_counts(site.server.pid, *site.server.workers()))
    assert descriptors[1] == descriptors[0], "of the supervisor and the worker"
    assert site.predict("actor", "7").text == "7"


def test_a_front_end_that_hangs_is_replaced_and_holds_up_no_change(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=CONFIG), frontends=2)
    hung, well = site.server.front_ends()
    with site.load("actor", CLIENTS, words=WORDS) as load:
        wait_for_answers(load)
        os.kill(hung, signal.SIGSTOP)
        cut = connections(site, hung)
        assert site.manage("PUT", "/models/actor", min_worker=2, max_worker=2, synchronous="true").status_code == 200
        assert len(site.ready_workers("actor")) == 2
        assert well in wait_front_ends(site, hung)
        wait_for_answers(load)
        assert site.manage("PUT", "/models/actor", min_worker=1, max_worker=1, synchronous="true").status_code == 200
        wait_for_answers(load)
    check_apart_from(load, cut)


def test_changes_meet_two_front_ends_and_lose_no_request(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=CONFIG), frontends=2)
    descriptors = []
    for _ in range(3):
        with site.load("actor", CLIENTS, words=WORDS) as load:
            for count in (3, 1):
                scaled = site.manage("PUT", "/models/actor", min_worker=count, max_worker=count, synchronous="true")
                assert scaled.status_code == 200, scaled.text
                wait_for_answers(load)
            assert load.errors.total() == 0
            assert site.manage("DELETE", "/models/actor").status_code == 200
            assert {site.predict("actor", "1").status_code for _ in range(20)} == {404}
            added = site.manage("POST", "/models", url="actor.mar", initial_workers=1, synchronous="true")
            assert added.status_code == 200, added.text
            assert {site.predict("actor", "1").status_code for _ in range(20)} == {200}
            wait_for_answers(load)
        load.check()
        assert set(load.errors) <= {404}
        pids = (site.server.pid, *site.server.front_ends())
        for pid in pids[1:]:
            wait_until(lambda each=pid: connections(site, each) == 0, 10, "closed connections")  # type: ignore[misc]
        descriptors.append(fd_counts(*pids))
    assert descriptors[-1] == descriptors[0], "of the supervisor and the front ends"


def test_front_ends_that_die_while_models_come_and_go_are_told_everything_again(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=CONFIG), frontends=2)
    for number, doomed in zip(range(KILLS), itertools.cycle((0, 1)), strict=False):
        before = site.server.front_ends()
        os.kill(before[doomed], signal.SIGKILL)
        if number % 3 == 0:
            assert site.manage("DELETE", "/models/actor").status_code == 200
            assert site.manage("POST", "/models", url="actor.mar", initial_workers=1).status_code == 200
        elif number % 3 == 1:
            assert (
                site.manage("PUT", "/models/actor", min_worker=2, max_worker=2, synchronous="true").status_code == 200
            )
        else:
            assert (
                site.manage("PUT", "/models/actor", min_worker=1, max_worker=1, synchronous="true").status_code == 200
            )
        wait_front_ends(site, before[doomed])
        assert {site.predict("actor", "1").status_code for _ in range(10)} == {200}
    for pid in site.server.front_ends():
        share_work(site, pid)
