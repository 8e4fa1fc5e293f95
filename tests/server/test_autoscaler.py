"""The autoscaler obeys: which pools grow and shrink, and when they may not."""

import asyncio
from types import SimpleNamespace

import pytest

from ringserve.server.autoscale import PERIOD_S, REFUSED_S, Autoscaler
from ringserve.server.control import Load
from ringserve.server.registry import ModelVersion
from tests.server.pool_rig import Process, Rig, play


class Watch:
    """An autoscaler of the rig's pool, and what the front ends tell it."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr("ringserve.server.autoscale.time", SimpleNamespace(monotonic=loop.time))
        self._rig = rig
        self.waiting = 0
        self.autoscaler = Autoscaler(lambda: [rig.pool], self._ask, self._look_at_devices)

    async def _ask(self, keys: tuple[int, ...]) -> list[dict[int, Load]]:
        began_ns = 1 if self.waiting else 0
        return [{key: Load(self.waiting, began_ns, 0, 0) for key in keys}]

    async def _look_at_devices(self, version: ModelVersion) -> None:
        pass

    async def pass_by(self, seconds: float) -> None:
        """Look as often as it does, with all workers loaded."""
        for _ in range(round(seconds / PERIOD_S)):
            await asyncio.sleep(PERIOD_S)
            await self.autoscaler.look()
            for process in self._rig.running:
                if process.state.value == "starting":
                    process.load()


def test_a_worker_that_does_not_come_to_its_end_keeps_no_other_from_being_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.version.min_workers, rig.version.max_workers = 1, 4
        watch = Watch(rig, monkeypatch)
        rig.pool.grow(2)
        rig.may_detach.clear()
        await watch.pass_by(180)
        assert len(rig.pool.slots) == 1
        assert rig.pool.draining
        watch.waiting = 100
        await watch.pass_by(30)
        assert len(rig.pool.slots) == 4
        watch.waiting = 0
        await watch.pass_by(300)
        assert len(rig.pool.slots) == 4, "nothing else is taken away before that has left"
        rig.may_detach.set()
        await watch.pass_by(120)
        assert len(rig.pool.slots) == 3

    play(scenario)


def test_where_a_worker_that_leaves_still_has_the_place_it_is_asked_for_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.version.min_workers, rig.version.max_workers = 1, 2
        watch = Watch(rig, monkeypatch)
        rig.pool.grow(2)
        rig.places_left = 0
        rig.may_detach.clear()
        await watch.pass_by(180)
        watch.waiting = 100
        await watch.pass_by(10)
        assert len(rig.pool.slots) == 1
        rig.may_detach.set()
        rig.places_left = 1
        await watch.pass_by(REFUSED_S / 4)
        assert rig.pool.ready_count == 2
        assert len(Process.all) == 3

    play(scenario)
