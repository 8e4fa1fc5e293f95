"""What the supervisor does about what front ends tell it."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ringserve.server.control import Detached, ServeHttp
from ringserve.server.fleet import Fleet
from ringserve.server.front_end_slot import FleetHooks, FrontEndSlot
from ringserve.server.lifecycle import State
from ringserve.server.process import Child


def test_a_front_end_that_could_not_take_a_worker_is_given_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    linked: list[tuple[int, str]] = []

    async def scenario() -> None:
        version, worker = SimpleNamespace(key=7), SimpleNamespace(worker_id="9000")
        hooks = FleetHooks(cast(Any, None), lambda: cast(Any, [(version, worker)]), lambda key, worker_id: None)
        fleet = Fleet(cast(socket.socket, None), ServeHttp(1, "1", 1, 1, 1, 1), 1, hooks)
        child = cast(Child, SimpleNamespace(state=State.READY, send=lambda message: None))
        slot = FrontEndSlot(0, child, attached={(7, "9000"), (7, "9001")})
        fleet._slots.append(slot)
        monkeypatch.setattr("ringserve.server.fleet.RELINK_S", 0.0)
        monkeypatch.setattr(
            fleet, "_link", lambda slot, version, worker: linked.append((version.key, worker.worker_id))
        )
        fleet._heard(0, Detached(7, "9000"))
        await asyncio.sleep(0.001)
        assert linked == [(7, "9000")]
        asked = asyncio.ensure_future(fleet.detach(cast(Any, version), "9001", 10.0))
        await asyncio.sleep(0)
        fleet._heard(0, Detached(7, "9001"))
        assert await asked
        assert slot.attached == set()

    asyncio.run(scenario())
