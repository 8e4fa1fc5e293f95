"""No change is acknowledged before its snapshot is on the disk; several share one; a disk that refuses fails none."""

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ringserve.server.snapshots import recorder as module
from ringserve.server.snapshots.document import State, VersionRecord
from ringserve.server.snapshots.recorder import Recorder
from ringserve.server.snapshots.store import SnapshotStore

DIGITS = VersionRecord("digits", "1.0", "digits.mar", ours=True)


class SlowStore(SnapshotStore):
    """Writes to a list, when it is let."""

    def __init__(self) -> None:
        super().__init__(Path("config"), 1)
        self.written: list[tuple[str, Sequence[VersionRecord]]] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.refusal: OSError | None = None

    def write(self, kind: str, state: State, properties: Sequence[tuple[str, str]]) -> Path:
        assert self.may_write.wait(10)
        if self.refusal is not None:
            raise self.refusal
        self.written.append((kind, state.records))
        return self.folder / kind

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.written]


class Stage:
    def __init__(self, *, snapshots: bool = True) -> None:
        self.store = SlowStore()
        self.records = [DIGITS]
        self.recorder = Recorder(self.store if snapshots else None, [], lambda: list(self.records))


def play(scenario: Callable[[Stage], Awaitable[None]], *, snapshots: bool = True) -> Stage:
    stage = Stage(snapshots=snapshots)
    asyncio.run(asyncio.wait_for(_run(scenario, stage), 10))
    return stage


async def _run(scenario: Callable[[Stage], Awaitable[None]], stage: Stage) -> None:
    await scenario(stage)


def test_nothing_is_written_before_everything_is_restored() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.record()
        await stage.recorder.stop()

    assert play(scenario).store.written == []


def test_a_start_a_change_and_a_stop_have_a_snapshot_each() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        await stage.recorder.record()
        await stage.recorder.stop()

    assert play(scenario).store.kinds == ["startup", "snapshot", "shutdown"]


def test_changes_during_a_write_share_the_next_one_and_wait_for_it() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        stage.store.may_write.clear()
        first = asyncio.ensure_future(stage.recorder.record())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stage.records.append(replace(DIGITS, version="2.0"))
        others = [asyncio.ensure_future(stage.recorder.record()) for _ in range(20)]
        await asyncio.sleep(0)
        assert not first.done()
        stage.store.may_write.set()
        await first
        assert not any(each.done() for each in others), "what the first one wrote does not hold their change"
        await asyncio.gather(*others)

    written = play(scenario).store.written
    assert [len(records) for _, records in written] == [1, 1, 2]


def test_a_caller_that_goes_away_does_not_stop_the_write_of_others() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        stage.store.may_write.clear()
        gone, stays = (asyncio.ensure_future(stage.recorder.record()) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        stage.store.may_write.set()
        await stays

    assert play(scenario).store.kinds[-1] == "snapshot"


def test_a_disk_that_refuses_is_told_and_fails_no_change(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        stage.store.refusal = OSError(errno.ENOSPC, "No space left on device")
        await stage.recorder.record()
        assert stage.recorder.trouble == "No snapshot could be written to config: No space left on device"
        stage.store.refusal = None
        await stage.recorder.record()
        assert stage.recorder.trouble == ""

    play(scenario)
    assert "will be forgotten by a restart" in caplog.text


def test_what_changes_by_itself_is_written_only_when_a_restart_has_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOTE_S", 0.0)
    dropped = VersionRecord("dropped", "1.0", "dropped.mar", ours=True, dropped=True, default=True)

    async def note(stage: Stage, *records: VersionRecord) -> None:
        stage.records = list(records)
        stage.recorder.note()
        stage.recorder.note()
        for _ in range(3):
            await asyncio.sleep(0)

    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        for same in (
            (DIGITS,),
            (replace(DIGITS, devices=("cuda:1",)), dropped),
            (DIGITS, replace(dropped, default=False)),
        ):
            await note(stage, *same)
            await stage.recorder.record()
        assert stage.store.kinds == ["startup", *["snapshot"] * 3], "one each that was asked for, and none besides"
        for other in ((DIGITS, replace(dropped, scaled=True)), (replace(DIGITS, min_workers=3),)):
            before = len(stage.store.kinds)
            await note(stage, *other)
            while len(stage.store.kinds) == before:
                await asyncio.sleep(0)

    play(scenario)


def test_without_snapshots_nothing_is_written_and_nothing_handed_on() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        stage.recorder.note()
        await stage.recorder.record()
        assert stage.recorder.text() == ""
        await stage.recorder.stop()

    assert play(scenario, snapshots=False).store.written == []


def test_who_has_been_taken_over_from_writes_nothing_more() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.recorder.start()
        stage.recorder.note()
        stage.recorder.retire()
        await stage.recorder.record()
        stage.recorder.note()
        await stage.recorder.stop()

    assert play(scenario).store.kinds == ["startup"]
