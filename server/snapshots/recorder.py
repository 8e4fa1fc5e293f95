"""Writes a snapshot for every change, and lets nobody be told of one before it is on the disk.

Changes that are made while one is written share the next write. A disk that refuses is said loudly and fails no change: the
models serve, and what is lost is only that a restart would remember them.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ringserve.server.snapshots.document import State, VersionRecord, render_state
from ringserve.server.snapshots.store import SnapshotStore

logger = logging.getLogger("ringserve.snapshots")

NOTE_S = 0.2
_RANK = {"snapshot": 0, "startup": 1, "shutdown": 2}

Records = Sequence[VersionRecord]


class Recorder:
    """`look` says what is desired now, `away` which files the API has sent away. Without a store (--ncs) nothing is written. Until
    `start` nothing is either: half of what is to be restored must not take the place of the whole."""

    def __init__(
        self,
        store: SnapshotStore | None,
        properties: Sequence[tuple[str, str]],
        look: Callable[[], Records],
        away: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.trouble = ""  # why the last one could not be written
        self._store = store
        self._properties = properties
        self._look = look
        self._away = away
        self._started = False
        self._stopped = False
        self._kind = "snapshot"  # of the next one
        self._asked = 0  # how many times a snapshot was asked for
        self._covered = 0  # how many of these have theirs
        self._writing: asyncio.Task[None] | None = None
        self._written: State | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._noted: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Everything is restored, and the listeners are up."""
        self._started = True
        await self.record("startup")

    async def stop(self) -> None:
        """An orderly end. What is acknowledged after this is still written."""
        if not self._started:
            return
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        await self.record("shutdown")

    def retire(self) -> None:
        """Another instance has taken over and writes from here on: a snapshot of ours would be newer than its, and wrong."""
        self._started = False
        if self._timer is not None:
            self._timer.cancel()

    async def record(self, kind: str = "snapshot") -> None:
        """Until a snapshot that holds everything done so far is on the disk, or has been refused by it."""
        if self._store is None or not self._started:
            return
        self._kind = max(self._kind, kind, key=_RANK.__getitem__)
        self._asked += 1
        mine = self._asked
        while self._covered < mine:
            if self._writing is None:
                self._writing = asyncio.ensure_future(self._write(self._store))
            await asyncio.shield(self._writing)

    def text(self) -> str:
        """The desired state as of now, for who takes over from us; empty where none is kept."""
        return "" if self._store is None else render_state(self._state())

    def _state(self) -> State:
        return State(tuple(self._look()), unregistered=dict(self._away()))

    def note(self) -> None:
        """Something may have changed by itself: soon it is looked whether a restart would have to know."""
        if self._store is not None and self._started and not self._stopped and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTE_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        if self._written is None or _essence(self._written) != _essence(self._state()):
            self._noted = asyncio.ensure_future(self.record())

    async def _write(self, store: SnapshotStore) -> None:
        covers, kind, self._kind = self._asked, self._kind, "snapshot"
        try:
            state = self._state()
            await asyncio.to_thread(store.write, kind, state, self._properties)
        except OSError as error:
            self._complain(error.strerror or str(error))
        except Exception as error:  # the change has happened, whatever became of its snapshot
            logger.exception("a snapshot could not be made")
            self._complain(repr(error))
        else:
            self._written = state
            if self.trouble:
                logger.info("snapshots are written again to %s", store.folder)
            self.trouble = ""
        finally:
            self._covered = covers
            self._writing = None

    def _complain(self, reason: str) -> None:
        assert self._store is not None
        self.trouble = f"No snapshot could be written to {self._store.folder}: {reason}"
        logger.error("%s. What has just changed will be forgotten by a restart.", self.trouble)


def _essence(state: State) -> tuple[dict[tuple[str, str], VersionRecord], Mapping[str, str]]:
    """What a restart has to be told: not what the repository says by itself, nor where workers happen to be."""
    told = {}
    for each in state.records:
        if not each.dropped or each.by_name or each.scaled or each.kept or each.pinned or each.lost:
            default = each.default and (each.pinned or not each.dropped)
            told[each.model, each.version] = replace(each, devices=(), default=default)
    return told, state.unregistered
