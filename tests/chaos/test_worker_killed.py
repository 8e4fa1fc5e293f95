"""Workers are killed under load: every request is answered once, the rest go on, nothing grows."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ringserve.server.testing import wait_until, zombies
from tests.chaos.descriptors import fd_counts

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

CLIENTS = 32
BATCH = 4
GROWTH_BYTES_MAX = 16 << 20


def rss_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def test_a_worker_killed_a_hundred_times_costs_only_the_batches_it_executed_and_nothing_is_left_of_it(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=f"batchSize: {BATCH}\n"))
    kills, errors = 0, 0
    memory, descriptors = [], []
    for more in (10, 90):
        with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load:
            site.kill_under_load("actor", load, more, answers_between=CLIENTS)
            site.wait_ready("actor")
        load.check()
        assert set(load.errors) <= {500, 507}
        assert all("was killed by signal 9 (SIGKILL)" in message for message in load.messages)
        kills, errors = kills + more, errors + load.errors.total()
        wait_until(lambda: site.connections() == 0, 10, "closed connections")
        memory.append(rss_bytes(site.front_end))
        descriptors.append(fd_counts(site.front_end, site.server.pid))
    assert 0 < errors <= kills * BATCH
    assert memory[1] - memory[0] < GROWTH_BYTES_MAX
    assert descriptors[1] == descriptors[0], "of the front end and the supervisor"
    assert site.predict("actor", "7").text == "7"
    wait_until(lambda: zombies(site.server.pid) == [], 10, "the burial of the last one")


# What does not fit into a slab travels in segments of its own: requests padded, answers grown.
PARCEL_BYTES = 1_500_000
WORDS = {
    "handler": ("", "sleep:0.001"),
    "typed": ("",),
    "parcels": ("", " " * PARCEL_BYTES, f"grow:{PARCEL_BYTES}"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_requests_queued_to_a_killed_worker_move_to_the_other_one(
    archive: Callable[..., Path], start: "Callable[..., Site]", kind: str
) -> None:
    typed = kind == "typed"
    kills = 10 if kind == "parcels" else 20
    site = start(archive("echo", config=f"batchSize: {BATCH}\n", typed=typed), workers=2)
    descriptors = []
    for _ in range(2):
        with site.load("echo", CLIENTS, typed=typed, words=WORDS[kind]) as load:
            site.kill_under_load("echo", load, kills // 2, answers_between=CLIENTS)
            site.wait_ready("echo", 2)
        load.check()
        assert set(load.errors) <= {500, 507}
        assert load.errors.total() <= kills // 2 * BATCH
        assert load.right > kills // 2 * CLIENTS
        wait_until(lambda: site.connections() == 0, 10, "closed connections")
        descriptors.append(fd_counts(site.front_end, site.server.pid))
    assert descriptors[1] == descriptors[0], "of the front end and the supervisor"
