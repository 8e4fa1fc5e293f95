"""Tells when it is worth looking at the repository again: when the system reports a change, and after a while in any case.

Reports get lost (links to elsewhere, network file systems, a folder that is replaced, too many watches), so they only make a look
come sooner. Nothing that goes wrong here ends the watching.
"""

import asyncio
import contextlib
import errno
import logging
import os
from pathlib import Path

from watchfiles import awatch

logger = logging.getLogger("ringserve.repository")
# It tells of every change at the level of our own log.
logging.getLogger("watchfiles").setLevel(logging.WARNING)

RESCAN_S = 30.0
# A burst of changes is one; the first of an endless one is told after `DEBOUNCE_MS` all the same.
DEBOUNCE_MS = 500
STEP_MS = 50
IDENTITY_S = 2.0  # how soon it is seen that the folder is another one now
REPAIR_S = 5.0
# watchfiles holds the interpreter while it enters a folder and what it links to: 16,000 folders of /usr take a second.
FOLDERS_MAX = 1000
NAMES_MAX = 50_000


class Watcher:
    """`changed` returns when there may be something new. `poll_s`: look that often, and listen to no reports."""

    def __init__(self, root: Path, *, poll_s: float | None = None, fallback_poll_s: float = 5.0) -> None:
        self._root = root
        self._poll_s = poll_s
        self._fallback_poll_s = fallback_poll_s
        self._deaf = False  # there are no reports for now
        self._event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Changes from here on are told."""
        if self._poll_s is None and self._task is None:
            self._task = asyncio.ensure_future(self._listen())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def poke(self) -> None:
        """Make `changed` return."""
        self._event.set()

    async def changed(self, timeout_s: float | None = None) -> None:
        """Until something has changed since the last return, or it is time to look anyway; at most `timeout_s`."""
        pause_s = self._poll_s or (self._fallback_poll_s if self._deaf else RESCAN_S)
        if timeout_s is not None:
            pause_s = min(pause_s, timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._event.wait()
        self._event.clear()

    async def _listen(self) -> None:
        while True:
            try:
                folder = await asyncio.to_thread(os.open, self._root, os.O_PATH | os.O_DIRECTORY)
                try:
                    await self._listen_to(folder)
                finally:
                    os.close(folder)
                self._deaf = False
            except Exception as error:  # noqa: BLE001 - the watching goes on, whatever the library or the system says
                if not self._deaf:
                    logger.error(
                        "%s: changes are not reported, looking every %g s: %s", self._root, self._fallback_poll_s, error
                    )
                self._deaf = True
                await asyncio.sleep(REPAIR_S)
            self.poke()

    async def _listen_to(self, folder: int) -> None:
        """Returns when the folder is no longer this open one. (It must be open: the number of one that is removed may be its
        successor's.)"""
        await asyncio.to_thread(_check_size, self._root)
        reports = awatch(
            self._root,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=int(IDENTITY_S * 1000),
            yield_on_timeout=True,
            force_polling=False,
            ignore_permission_denied=True,
        )
        async with contextlib.aclosing(reports):
            async for changes in reports:
                if self._deaf:
                    logger.info("%s: changes are reported again", self._root)
                    self._deaf = False
                    self.poke()
                if changes:
                    self.poke()
                if not await asyncio.to_thread(_is_same, self._root, folder):
                    return


def _check_size(root: Path) -> None:
    """Raises `OSError` for a tree that takes too long to enter. Links are followed, as they will be."""
    folders = names = 0
    for _, inside, files in os.walk(root, followlinks=True):
        folders, names = folders + 1, names + len(inside) + len(files)
        if folders > FOLDERS_MAX or names > NAMES_MAX:
            raise OSError(errno.E2BIG, f"expected at most {FOLDERS_MAX} folders and {NAMES_MAX} names in it, got more")


def _is_same(root: Path, folder: int) -> bool:
    return os.path.samestat(os.stat(root), os.fstat(folder))
