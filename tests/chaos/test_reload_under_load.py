"""A model is replaced as fast as it goes while clients ask it and another one: nobody notices."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ringserve.server.testing import wait_until
from tests.chaos.conftest import ACTOR
from tests.chaos.descriptors import fd_counts

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

RELOADS = 10
KILLS = 5
CLIENTS = 8


def replace(path: Path) -> None:
    """The same model again, as a file of its own."""
    made = path.with_name(".made")
    made.write_bytes(path.read_bytes())
    os.utime(made, (1, 1))  # nobody has written to it lately
    os.replace(made, path)


def test_of_a_worker_that_is_killed_while_its_replacement_loads_only_the_batch_is_lost(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    """Whether the replacement takes over before the worker is back, or after."""
    store = archive("actor", source=f"import time\ntime.sleep(0.2)\n{ACTOR}")
    site = start(store, model_control_mode="watch")
    with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load:
        for number in range(KILLS):
            done, right = site.server.log.count("actor.mar is model"), load.right + 50 * number
            [old] = site.server.workers()
            replace(store / "actor.mar")
            wait_until(lambda: len(site.server.workers()) > 1, 10, "the replacement's worker")
            wait_until(lambda right=right: load.right > right, 10, "answers")  # type: ignore[misc]
            site.kill_worker(old)
            wait_until(lambda done=done: site.server.log.count("actor.mar is model") > done, 20, "a reload")  # type: ignore[misc]
            wait_until(lambda: len(site.server.workers()) == 1, 10, "the worker that was replaced is gone")
    load.check()
    assert load.errors.keys() <= {500}, load.messages
    assert load.errors.total() <= KILLS, load.messages


def test_reloads_one_after_another_fail_no_request_and_leave_nothing(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    archive("actor", config="batchSize: 4\n")
    store = archive("other", config="batchSize: 4\n")
    site = start(store, model_control_mode="watch")
    descriptors = []

    def reloads() -> int:
        return site.server.log.count("actor.mar is model actor version 1.0")

    with site.load("actor", CLIENTS, words=("", "sleep:0.001")) as load, site.load("other", CLIENTS) as other:
        before = site.ready_workers("other")
        for number in range(RELOADS):
            done, right, others = reloads(), load.right, other.right
            replace(store / "actor.mar")
            wait_until(lambda done=done: reloads() > done, 30, f"a reload\n{site.server.log}")  # type: ignore[misc]
            wait_until(lambda right=right: load.right > right, 20, "answers of the model")  # type: ignore[misc]
            wait_until(lambda others=others: other.right > others, 20, "answers of the other")  # type: ignore[misc]
            if number in (1, RELOADS - 1):
                wait_until(lambda: len(site.server.workers()) == 2, 20, "the worker that was replaced is gone")
                descriptors.append(fd_counts(site.front_end, site.server.pid))
    for each in (load, other):
        each.check()
        assert each.errors.total() == 0, each.messages
    assert site.ready_workers("other") == before, "nobody touched it"
    assert reloads() == RELOADS + 1
    for before_fds, after_fds in zip(*descriptors, strict=True):
        assert after_fds <= before_fds + 2, "of the front end and the supervisor"
