"""What the running instance and the new one say to each other, both of them in this process."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from ringserve.protocol.errors import ModelNotFound, ShuttingDown
from ringserve.server.handover import (
    SOCKET_NAME,
    HandOver,
    HandOverHooks,
    HandOverListener,
    NotHandedOver,
    Predecessor,
    Start,
    connect,
    how_started,
)
from ringserve.server.settings import Address
from ringserve.server.versions import Versions

ADDRESS = Address("127.0.0.1", 8080)
START = Start(("start", "--models", "all"), "/srv", "logs", 90.0)


class Running:
    """The running instance: what it is told lies in `events`."""

    def __init__(self, folder: Path, refuses: str = "", takes_s: float = 0.0) -> None:
        self.events: list[str] = []
        self.folder = folder
        self.socket, self._other = socket.socketpair()
        self._refuses, self._takes_s = refuses, takes_s
        hooks = HandOverHooks(self._prepare, lambda: self.events.append("release"), lambda: self.events.append("gone"))
        self.listener = HandOverListener(folder, START, hooks)

    async def _prepare(self) -> tuple[HandOver, list[int]]:
        self.events.append("prepare")
        await asyncio.sleep(self._takes_s)
        if self._refuses:
            raise ShuttingDown(self._refuses)
        sockets = (("inference", str(ADDRESS)), ("management", "http://127.0.0.1:1"))
        return HandOver(sockets, (("m", "1.0"),), "{}"), [self.socket.fileno()] * 2

    async def told(self, event: str) -> None:
        async with asyncio.timeout(5):
            while event not in self.events:
                await asyncio.sleep(0)

    def close(self) -> None:
        self.listener.close()
        self.socket.close()
        self._other.close()


def predecessor(folder: Path) -> Predecessor:
    return Predecessor(connect(folder), as_before=True)


async def ask(asking: Predecessor, called_off: list[str] | None = None) -> dict[str, socket.socket]:
    return await asking.ask({"inference": ADDRESS}, lambda: (called_off or []).append("called off"))


def run(talk: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(talk, 10))


def test_the_new_instance_gets_the_sockets_of_the_addresses_that_it_wants(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path), predecessor(tmp_path)
        inherited = await ask(asking)
        assert list(inherited) == ["inference"]
        assert os.fstat(inherited["inference"].fileno()) == os.fstat(running.socket.fileno())
        assert asking.handed == HandOver(
            (("inference", str(ADDRESS)), ("management", "http://127.0.0.1:1")), (("m", "1.0"),), "{}"
        )
        inherited["inference"].close()
        await asking.taken_over()
        assert running.events == ["prepare", "gone"]
        running.close()
        assert running.events == ["prepare", "gone"], "it is nobody's any more to release"

    run(talk())


def test_a_new_instance_that_ends_too_early_changes_nothing(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path), predecessor(tmp_path)
        for sock in (await ask(asking)).values():
            sock.close()
        asking.close()
        await running.told("release")
        again = predecessor(tmp_path)
        for sock in (await ask(again)).values():
            sock.close()
        again.close()
        running.close()

    run(talk())


def test_one_that_ends_while_changes_are_waited_for_is_not_waited_for(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path, takes_s=60.0), predecessor(tmp_path)
        waiting = asyncio.ensure_future(ask(asking))
        await running.told("prepare")
        waiting.cancel()
        asking.close()
        await running.told("release")
        running.close()

    run(talk())


def test_only_one_takes_over_at_a_time(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking, other = Running(tmp_path, takes_s=60.0), predecessor(tmp_path), predecessor(tmp_path)
        waiting = asyncio.ensure_future(ask(asking))
        await running.told("prepare")
        with pytest.raises(NotHandedOver, match="another instance is taking over already"):
            await ask(other)
        waiting.cancel()
        for each in (asking, other, running):
            each.close()

    run(talk())


def test_the_running_instance_may_refuse_and_says_why(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path, refuses="it has been told to stop"), predecessor(tmp_path)
        with pytest.raises(NotHandedOver, match="it has been told to stop"):
            await ask(asking)
        assert running.events == ["prepare", "release"]
        asking.close()
        running.close()

    run(talk())


def test_whatever_goes_wrong_in_the_running_instance_is_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(running: Running) -> tuple[HandOver, list[int]]:
        raise KeyError("sockets")

    async def talk() -> None:
        monkeypatch.setattr(Running, "_prepare", prepare)
        running, asking = Running(tmp_path), predecessor(tmp_path)
        with pytest.raises(NotHandedOver, match="KeyError: 'sockets'"):
            await ask(asking)
        assert running.events == ["release"]
        asking.close()
        running.close()

    run(talk())


def test_one_that_was_told_to_stop_hands_nothing_over_and_goes_on_refusing_changes(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking, late = Running(tmp_path), predecessor(tmp_path), predecessor(tmp_path)
        for sock in (await ask(asking)).values():
            sock.close()
        running.listener.withdraw()
        with pytest.raises(NotHandedOver, match="it has been told to stop"):
            await ask(late)
        with pytest.raises(ShuttingDown, match="called off"):
            await asking.taken_over()
        assert await asyncio.to_thread(how_started, tmp_path) == START, "who waits for its end knows how long"
        assert running.events == ["prepare"]
        for each in (asking, late, running):
            each.close()

    run(talk())


def test_a_running_instance_that_is_told_to_stop_calls_the_new_one_off(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path), predecessor(tmp_path)
        called_off = [""]
        for sock in (await ask(asking, called_off)).values():
            sock.close()
        running.close()
        async with asyncio.timeout(5):
            while "called off" not in called_off:
                await asyncio.sleep(0)
        asking.close()

    run(talk())


@pytest.mark.parametrize("heard", [False, True])
def test_it_cannot_be_taken_over_after_it_was_told_to_stop(tmp_path: Path, heard: bool) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path), predecessor(tmp_path)
        for sock in (await ask(asking)).values():
            sock.close()
        running.close()
        while heard and not asking._withdrawn:
            await asyncio.sleep(0)
        with pytest.raises(ShuttingDown, match="called off"):
            await asking.taken_over()

    run(talk())


class Loaded:
    """What the new instance has: all that was asked for, and that is nothing."""

    started = True

    @property
    def registry(self) -> "Loaded":
        return self

    def find(self, name: str, version: str) -> None:
        raise ModelNotFound(f"Model not found: {name}")


@pytest.mark.parametrize("as_before", [False, True])
@pytest.mark.parametrize("not_loaded", [[], ["m.mar: it is torn"]])
def test_what_is_served_may_be_unwanted_and_must_not_be_lost(
    tmp_path: Path, as_before: bool, not_loaded: list[str]
) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path), Predecessor(connect(tmp_path), as_before=as_before)
        for sock in (await ask(asking)).values():
            sock.close()
        if as_before or not_loaded:
            reason = not_loaded[0] if not_loaded else "it is not loaded, the log says why"
            with pytest.raises(NotHandedOver, match=f"model m version 1.0 is served by it, and not .*: {reason}"):
                await asking.equalled(cast(Versions, Loaded()), not_loaded)
        else:
            await asking.equalled(cast(Versions, Loaded()), not_loaded)
        asking.close()
        running.close()

    run(talk())


def test_one_that_died_without_a_word_is_taken_over_all_the_same(tmp_path: Path) -> None:
    async def talk() -> None:
        running, asking = Running(tmp_path), predecessor(tmp_path)
        for sock in (await ask(asking)).values():
            sock.close()
        for channel in running.listener._channels:
            channel.close()
        await asking.taken_over()
        running.close()

    run(talk())


def test_a_command_is_told_how_the_running_instance_was_started(tmp_path: Path) -> None:
    async def talk() -> None:
        running = Running(tmp_path)
        assert await asyncio.to_thread(how_started, tmp_path) == START
        running.close()

    run(talk())


def test_only_the_user_of_the_running_instance_can_reach_its_socket(tmp_path: Path) -> None:
    async def talk() -> None:
        running = Running(tmp_path)
        assert (tmp_path / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        running.close()

    run(talk())


def test_another_user_is_turned_away_by_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        running = Running(tmp_path)
        channel = connect(tmp_path)
        monkeypatch.setattr("ringserve.server.handover._peer_uid", lambda sock: os.geteuid() + 1)
        asking = Predecessor(channel, as_before=True)
        with pytest.raises(NotHandedOver, match="does not hand over"):
            await ask(asking)
        with pytest.raises(NotHandedOver, match="belongs to another user"):
            connect(tmp_path)
        assert running.events == []
        asking.close()
        running.close()

    run(talk())


def test_nobody_there_is_an_answer_too(tmp_path: Path) -> None:
    with pytest.raises(NotHandedOver, match="cannot be asked: No such file"):
        connect(tmp_path)
