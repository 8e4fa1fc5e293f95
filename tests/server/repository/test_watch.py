"""The watcher on a real folder: it tells of changes, and nothing that happens to the folder ends it."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ringserve.server.repository import watch as watch_module
from ringserve.server.repository.watch import Watcher

LONG_S = 30.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    return root


def watched(root: Path, test: Callable[[Watcher], Awaitable[None]]) -> None:
    async def run() -> None:
        watcher = Watcher(root)
        watcher.start()
        try:
            async with asyncio.timeout(LONG_S):
                await test(watcher)
        finally:
            await watcher.stop()

    asyncio.run(run())


async def until_told(watcher: Watcher, change: Callable[[], object]) -> None:
    """Make changes until one is told: the first may come before the system listens."""
    while True:
        change()
        began_s = time.monotonic()
        await watcher.changed(1.0)
        if time.monotonic() - began_s < 0.9:
            return


@pytest.mark.process
def test_changes_are_told_wherever_they_happen(root: Path) -> None:
    async def test(watcher: Watcher) -> None:
        await until_told(watcher, lambda: (root / "m.mar").write_text("a"))
        await until_told(watcher, lambda: (root / f"m/{time.monotonic_ns()}").mkdir(parents=True))
        (root / "m/1.0").mkdir()
        await until_told(watcher, lambda: (root / "m/1.0/m.mar").write_text("b"))
        await until_told(
            watcher, lambda: (root / "m.mar").rename(root / "n.mar") and (root / "n.mar").rename(root / "m.mar")
        )

    watched(root, test)


@pytest.mark.process
def test_a_folder_that_is_replaced_is_listened_to_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "IDENTITY_S", 0.05)
    monkeypatch.setattr(watch_module, "REPAIR_S", 0.05)

    async def test(watcher: Watcher) -> None:
        await until_told(watcher, lambda: (root / "m.mar").write_text("a"))
        shutil.rmtree(root)
        await watcher.changed(5)
        root.mkdir()
        await until_told(watcher, lambda: (root / "m.mar").write_text("b"))

    watched(root, test)


@pytest.mark.process
def test_where_nothing_is_reported_the_folder_is_looked_at_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No more watches, no such folder, a broken library."""
    monkeypatch.setattr(watch_module, "REPAIR_S", 0.01)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watch_module, "awatch", refuse)

    async def test() -> None:
        watcher = Watcher(root, fallback_poll_s=0.01)
        watcher.start()
        async with asyncio.timeout(LONG_S):
            for _ in range(5):
                await watcher.changed()
        await watcher.stop()

    asyncio.run(test())
    assert [record.message for record in caplog.records if record.name == "ringserve.repository"] == [
        f"{root}: changes are not reported, looking every 0.01 s: [Errno 28] No space left on device"
    ]


def test_a_tree_that_takes_long_to_enter_is_not_entered_on_the_event_loop(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one that lies there, nor one behind a link that leads out or in circles."""
    monkeypatch.setattr(watch_module, "FOLDERS_MAX", 10)
    monkeypatch.setattr(watch_module, "REPAIR_S", 0.01)
    for number in range(10):
        (tmp_path / f"elsewhere/{number}").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "elsewhere")

    async def test() -> None:
        watcher = Watcher(root, fallback_poll_s=0.01)
        watcher.start()
        async with asyncio.timeout(LONG_S):
            while not caplog.records:
                await watcher.changed()
        await watcher.stop()

    asyncio.run(test())
    assert "expected at most 10 folders and 50000 names in it, got more" in caplog.records[0].message


def test_polling_returns_after_its_pause_and_by_a_poke(root: Path) -> None:
    async def test() -> None:
        watcher = Watcher(root, poll_s=LONG_S * 2)
        watcher.start()
        async with asyncio.timeout(LONG_S):
            await watcher.changed(0.0)
            watcher.poke()
            await watcher.changed()
        await watcher.stop()

    asyncio.run(test())
