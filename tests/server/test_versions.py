"""Versions that are switched, resized, taken out and stopped, each while another of these is under way."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest

from ringserve.protocol.errors import RingServeError, ShuttingDown, VersionNotFound, WorkerStartFailed
from tests.server.pool_rig import Process
from tests.server.versions_rig import Site, ticks

Play = Callable[[Callable[[Site], Awaitable[None]]], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    def played(scenario: Callable[[Site], Awaitable[None]]) -> None:
        raised: list[object] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
            site = Site(monkeypatch)
            await scenario(site)
            await site.versions.stop()
            await ticks()
            assert site.running == []
            assert {each.key for each in site.versions.registry} <= set(site.versions._pools)
            assert site.versions._beside == {}
            assert site.versions._removals == {}

        asyncio.run(main())
        assert raised == []

    yield played


def test_a_version_that_is_abandoned_as_its_last_word_is_published_is_not_switched_in(play: Play) -> None:
    async def scenario(site: Site) -> None:
        old = await site.served()
        new = site.version()
        loading = asyncio.ensure_future(site.versions.load_beside(new, old))
        await ticks()
        site.front_end.may_apply.clear()
        site.load()
        await ticks()
        leaving = asyncio.ensure_future(site.versions.abandon(new.url))
        await ticks()
        site.front_end.may_apply.set()
        with pytest.raises(RingServeError):
            await loading
        await leaving
        assert site.versions.registry.find("m") is old
        assert site.versions.ready_count(old) == 1

    play(scenario)


def test_a_version_that_is_taken_out_cannot_be_switched_in(play: Play) -> None:
    async def scenario(site: Site) -> None:
        old = await site.served()
        new = site.version()
        loading = asyncio.ensure_future(site.versions.load_beside(new, old))
        await ticks()
        site.load()
        await loading
        await site.versions.take_out(new)
        with pytest.raises(VersionNotFound):
            await site.versions.switch(new, old, make_default=True)
        assert site.versions.registry.find("m") is old

    play(scenario)


def test_what_was_unregistered_while_its_replacement_was_loaded_stays_unregistered(play: Play) -> None:
    async def scenario(site: Site) -> None:
        old = await site.served()
        new = site.version()
        loading = asyncio.ensure_future(site.versions.load_beside(new, old))
        await ticks()
        await site.versions.take_out(old)
        site.load()
        await loading
        with pytest.raises(VersionNotFound):
            await site.versions.switch(new, old, make_default=True)
        assert list(site.versions.registry) == []
        assert site.running == []

    play(scenario)


def test_a_scaling_while_the_replacement_is_loaded_holds_for_the_replacement_and_the_next_one(play: Play) -> None:
    async def scenario(site: Site) -> None:
        version = await site.served()
        for scaled_to in (3, None, 1):
            new = site.version()
            loading = asyncio.ensure_future(site.versions.load_beside(new, version))
            await ticks()
            if scaled_to is not None:
                scaling = asyncio.ensure_future(site.versions.resize(version, scaled_to, scaled_to))
                await ticks()
            for _ in range(5):
                site.load()
                await ticks()
            await scaling
            await loading
            await site.versions.switch(new, version, make_default=True)
            await site.versions.take_out(version)
            version = new
            assert site.versions.ready_count(version) == version.min_workers == (scaled_to or 3)
            assert len(site.running) == version.min_workers

    play(scenario)


def test_the_replacement_of_a_version_that_has_grown_has_as_many_workers(play: Play) -> None:
    async def scenario(site: Site) -> None:
        old = await site.served(workers=1, workers_max=8)
        site.versions.pool(old).try_grow(6)
        site.load()
        new = site.version(workers=1, workers_max=4)
        loading = asyncio.ensure_future(site.versions.load_beside(new, old))
        await ticks()
        site.load()
        await ticks()
        site.load()
        await loading
        assert site.versions.ready_count(new) == 4
        await site.versions.switch(new, old, make_default=True)
        await site.versions.take_out(old)

    play(scenario)


def test_requests_that_wait_for_a_worker_that_is_just_started_again_are_answered_before_their_version_goes(
    play: Play,
) -> None:
    async def scenario(site: Site) -> None:
        old = await site.served()
        Process.all[0].answer().end(-signal.SIGKILL)
        site.front_end.waiting[old.key] = 8
        leaving = asyncio.ensure_future(site.versions.take_out(old))
        await ticks()
        assert len(site.running) == 1
        site.load()
        assert await leaving
        assert site.front_end.failed == []

    play(scenario)


def test_requests_that_wait_for_a_model_that_has_never_loaded_do_not_hold_up_its_end(play: Play) -> None:
    async def scenario(site: Site) -> None:
        version = site.version()
        site.versions.add(version)
        await site.versions.start(version)
        site.front_end.waiting[version.key] = 8
        registering = asyncio.ensure_future(site.versions.settle(version))
        await ticks()
        assert await site.versions.take_out(version)
        with pytest.raises(WorkerStartFailed):
            await registering

    play(scenario)


def test_a_scaling_that_another_one_has_overtaken_is_no_failure(play: Play) -> None:
    async def scenario(site: Site) -> None:
        version = await site.served()
        first = asyncio.ensure_future(site.versions.resize(version, 3, 3))
        await ticks()
        await site.versions.resize(version, 1, 1)
        await first
        assert len(site.running) == 1

    play(scenario)


def test_nothing_is_started_any_more_when_the_server_has_stopped(play: Play) -> None:
    async def scenario(site: Site) -> None:
        version = await site.served(workers=2)
        await site.versions.stop()
        count = len(Process.all)
        with pytest.raises(ShuttingDown):
            await site.versions.resize(version, 3, 3)
        with pytest.raises(ShuttingDown):
            site.versions.add(site.version("2.0"))
        with pytest.raises(ShuttingDown):
            await site.versions.load_beside(site.version("3.0"))
        assert [each.version for each in site.versions.registry] == ["1.0"]
        assert len(Process.all) == count

    play(scenario)


def test_a_scaling_that_waits_for_workers_to_stop_starts_none_when_the_server_stops_meanwhile(play: Play) -> None:
    async def scenario(site: Site) -> None:
        version = await site.served(workers=3)
        scaling = asyncio.ensure_future(site.versions.resize(version, 2, 2))
        stopping = asyncio.ensure_future(site.versions.stop())
        with pytest.raises(ShuttingDown):
            await scaling
        await stopping
        assert site.running == []

    play(scenario)
