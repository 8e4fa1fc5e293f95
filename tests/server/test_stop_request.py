"""Being told to stop, once and twice."""

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from ringserve.server.stop_request import STOP_SIGNALS, StopRequest, holding_stop_signals, ignore_stop_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Told(list[str]):
    """What somebody was told, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.request = StopRequest(lambda: self.append("signal"), lambda: self.append("asked"))


def kill(number: int) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, number)  # other threads of the tests hold nothing back


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_is_in_a_hurry(number: int) -> None:
    async def life() -> None:
        told = Told()
        told.request.obey_signals()
        kill(number)
        await asyncio.wait_for(told.request.asked.wait(), 5)
        assert (told, told.request.hurry.is_set()) == (["signal", "asked"], False)
        kill(number)
        await asyncio.wait_for(told.request.hurry.wait(), 5)

    asyncio.run(life())


def test_who_ends_for_another_reason_has_not_been_told_once_already() -> None:
    """One that has handed over gets its first SIGTERM from whoever stops them both."""

    async def life() -> None:
        told = Told()
        told.request.obey_signals()
        told.request.ask()
        told.request.ask()
        kill(signal.SIGTERM)
        while "signal" not in told:
            await asyncio.sleep(0)
        assert not told.request.hurry.is_set()

    asyncio.run(life())


def test_nohup_is_respected() -> None:
    async def life() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        told = Told()
        told.request.obey_signals()
        kill(signal.SIGHUP)
        kill(signal.SIGTERM)
        await asyncio.wait_for(told.request.asked.wait(), 5)
        assert told == ["signal", "asked"]

    asyncio.run(life())


def test_one_that_comes_before_anybody_obeys_waits_and_one_that_comes_at_the_end_is_ignored() -> None:
    told: list[Told] = []

    async def life() -> None:
        told.append(Told())
        told[0].request.obey_signals()
        await asyncio.wait_for(told[0].request.asked.wait(), 5)
        ignore_stop_signals()

    with holding_stop_signals():
        kill(signal.SIGTERM)
        asyncio.run(life())
        kill(signal.SIGTERM)
    assert told == [["signal", "asked"]]


def test_work_ends_with_the_request() -> None:
    async def life() -> None:
        told = Told()
        asyncio.get_running_loop().call_soon(told.request.ask)
        await asyncio.wait_for(told.request.unless(asyncio.sleep(60)), 5)
        with pytest.raises(ValueError, match="its own"):
            await told.request.unless(fails())

    async def fails() -> None:
        raise ValueError("its own")

    asyncio.run(life())
