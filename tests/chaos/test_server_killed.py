"""Whole servers, supervisors and front ends are killed: nothing is left behind, and what can go on does."""

import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ringserve.server.front_end_core import ORPHAN_DRAIN_S
from ringserve.server.testing import SHM, wait_until
from ringserve.server.worker import ORPHAN_S_MAX
from tests.chaos.descriptors import fd_counts

if TYPE_CHECKING:
    from tests.chaos.conftest import Asking, Site

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("forsaken")]


def refuses(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) != 0


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_server_killed_whole_leaves_nothing_that_the_next_start_does_not_clean_up(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    before = set(os.listdir(SHM))
    site = start(archive("actor"))
    server = site.server
    with site.load("actor", 8) as load:
        wait_until(lambda: load.right > 100, 10, "answers")
        kill(server.pid, *server.children())  # the supervisor first: it must not have time to restart anybody
        load.halt()
    wait_until(lambda: not server.processes(), 10, "the end of every process")
    assert set(os.listdir(SHM)) <= before
    left = {path.name for path in server.tmp_dir.iterdir()}
    assert ".model_server.pid" in left
    [old_work_dir] = [name for name in left if name.startswith("ringserve-")]
    server.wait(5)

    server.start()
    wait_until(lambda: site.ping().status_code == 200, 30, "a healthy server")
    assert not (server.tmp_dir / old_work_dir).exists()
    assert (server.tmp_dir / ".model_server.pid").read_text() == str(server.pid)
    assert site.predict("actor", "1").text == "1"


def test_without_its_supervisor_a_server_answers_what_is_in_flight_and_ends(
    archive: Callable[..., Path], start: "Callable[..., Site]", tmp_path: Path
) -> None:
    site = start(archive("actor"))
    server = site.server
    with site.load("actor", 8) as load:
        wait_until(lambda: load.right > 100, 10, "answers")
        long_one = site.ask(f"5 hold:{tmp_path / 'begun'}:2")
        wait_until((tmp_path / "begun").exists, 10, "a long prediction")
        kill(server.pid)
        load.halt()
        response = long_one.wait(10)
    assert response.text == "5"
    wait_until(lambda: not server.processes(), 5, "the end of front end and workers")
    assert refuses(server.inference_url)
    assert refuses(server.management_url)
    assert load.wrong == []
    server.wait(5)

    server.start()
    wait_until(lambda: site.ping().status_code == 200, 30, "a healthy server")
    assert site.predict("actor", "6").text == "6"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_server_told_to_stop_or_without_its_supervisor_answers_every_busy_client_and_refuses_new_ones(
    archive: Callable[..., Path], start: "Callable[..., Site]", number: signal.Signals
) -> None:
    """Clients that would go on asking for ever on their connections neither lose a request nor hold it up."""
    site = start(archive("actor", config="batchSize: 4\n"))
    for _ in range(3):
        with site.load("actor", 32, words=("sleep:0.001",)) as load:
            wait_until(lambda seen=load: seen.right > 100, 10, "answers")  # type: ignore[misc]
            os.kill(site.server.pid, number)
            wait_until(lambda: not site.server.processes(), 5, "the end of every process")
            wait_until(lambda seen=load: seen.refused > 32, 5, "refused connections")  # type: ignore[misc]
        assert load.wrong == []
        assert load.lost == []
        assert set(load.errors) <= {503}
        site.server.wait(5)
        site.server.start()
        wait_until(lambda: site.ping().status_code == 200, 30, "a healthy server")


def test_a_killed_front_end_comes_back_to_the_same_workers_and_refuses_nobody_meanwhile(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor"), workers=2)
    workers = site.ready_workers("actor")
    descriptors = []
    for _ in range(6):
        old = site.front_end
        with site.load("actor", 8) as load:
            wait_until(lambda seen=load: seen.right > 50, 10, "answers")  # type: ignore[misc]
            answered = load.right
            kill(old)
            wait_until(lambda seen=load, at=answered: seen.right > at + 200, 20, "answers again")  # type: ignore[misc]
        # Connections die with the process that held them; what is sent afterwards waits in the socket's queue.
        assert load.wrong == []
        assert load.errors.total() == 0
        assert load.refused == 0
        assert len(load.lost) <= 2 * 8
        assert site.front_end != old
        assert site.ready_workers("actor") == workers
        assert site.ping().status_code == 200
        wait_until(lambda: site.connections() == 0, 10, "closed connections")
        pids = (*workers, site.server.pid, site.front_end)
        descriptors.append(fd_counts(*pids))
    assert descriptors[-1] == descriptors[0], "of the workers, the supervisor and the front end"


def test_front_ends_and_workers_killed_in_any_order_come_back_together(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    archive("typed", typed=True)
    site = start(archive("actor", config="batchSize: 4\n"), workers=2)
    random_one = random.Random(11)
    descriptors = []
    for _ in range(6):
        with site.load("actor", 16) as load, site.load("typed", 4, typed=True) as typed:
            wait_until(lambda a=load, b=typed: a.right > 50 and b.right > 50, 10, "answers")  # type: ignore[misc]
            victims = [site.front_end, *site.ready_workers("actor"), *site.ready_workers("typed")]
            for victim in random_one.sample(victims, random_one.randint(2, len(victims))):
                site.kill_worker(victim)
            site.wait_ready("actor", 2)
            site.wait_ready("typed", 2)
            seen = load.right, typed.right
            wait_until(
                lambda a=load, b=typed, at=seen: a.right > at[0] + 50 and b.right > at[1] + 50,  # type: ignore[misc]
                10,
                "answers again",
            )
        for each in (load, typed):
            assert each.wrong == []
            assert each.refused == 0
            assert set(each.errors) <= {500, 507}
        wait_until(lambda: site.ping().status_code == 200, 10, "a healthy server")
        wait_until(lambda: site.connections() == 0, 10, "closed connections")
        descriptors.append(fd_counts(site.server.pid, site.front_end))
    assert descriptors[-1] == descriptors[0], "of the supervisor and the front end"


def test_without_its_supervisor_a_server_with_a_model_that_never_returns_ends_too(
    forsaken: "tuple[Site, Asking]",
) -> None:
    """The last here: it dies while the others are tested."""
    site, endless = forsaken
    response = endless.wait(ORPHAN_DRAIN_S + 5)
    assert response.status_code == 503
    assert response.json()["message"] == "The server is shutting down."
    server = site.server
    wait_until(lambda: not server.front_ends(), 5, "the end of the front end")
    assert refuses(server.inference_url)
    wait_until(lambda: not server.processes(), ORPHAN_S_MAX + 5, "the end of the worker")
    server.start()
    server.stop()
    assert server.remains() == []
