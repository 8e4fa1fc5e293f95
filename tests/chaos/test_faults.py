"""A process dies at every transition of a slab and a ring: what is answered is right, and the server goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from ringserve.server.testing import wait_until
from ringserve.shm.faults import FRONT_END_POINTS, VARIABLE, WORKER_POINTS

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

CLIENTS = 12
# Often enough to die a few times in a second, not so often that nothing is ever answered.
AT = 60
DEATH = "was killed by signal 9 (SIGKILL)"
# Long bodies arrive in their rows, long answers leave from them; the rest are a line.
WORDS = ("", "", "", " " * 300_000, "grow:300000")

STREAMER = """
def handle(data, context):
    if data is None:
        return
    for part in ("a", "b"):
        yield [part] * len(data)
    yield [bytes(row["body"]).decode().partition(" ")[0] for row in data]
"""


@pytest.mark.parametrize("point", [point for point in FRONT_END_POINTS + WORKER_POINTS if "chunk" not in point])
def test_a_death_at_this_place_costs_only_what_it_must(
    archive: Callable[..., Path], start: "Callable[..., Site]", point: str
) -> None:
    site = start(
        archive("actor", config="batchSize: 4\n"), workers=2, frontends=2, env={VARIABLE: f"{point}=kill@{AT}"}
    )
    with site.load("actor", CLIENTS, words=WORDS) as load:
        wait_until(lambda: DEATH in site.server.log, 40, "a death")
        answered = load.right
        wait_until(lambda: load.right > answered + CLIENTS, 40, "answers after a death")
    assert load.wrong == []
    assert load.refused == 0
    assert set(load.errors) <= {500, 503, 507}
    if point in WORKER_POINTS:
        assert load.lost == []


@pytest.mark.parametrize("point", ["chunk-pushed", "chunk-taken"])
def test_a_death_within_a_streamed_answer_never_makes_it_look_complete(
    archive: Callable[..., Path], start: "Callable[..., Site]", point: str
) -> None:
    store = archive("streamer", source=STREAMER, config="batchSize: 4\n")
    site = start(store, env={VARIABLE: f"{point}=kill@8"})
    whole, broken = 0, 0
    for number in range(40):
        try:
            answer = site.predict("streamer", f"{number} ")
        except httpx.HTTPError:
            broken += 1
            wait_until(lambda: site.server.front_ends() and site.ping().status_code == 200, 20, "a healthy server")
            continue
        if answer.status_code == 200:
            assert answer.text == f"ab{number}"
            whole += 1
        else:
            assert answer.status_code in (500, 503, 507)
    assert whole > 10
    assert broken + whole <= 40 > whole
