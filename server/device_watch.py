"""The devices as the event loop sees them: looked at now and then in a thread, never waited for long.

A driver in trouble may not answer for minutes, or ever. Then everybody goes on with what was seen last, and no further thread is
spent on it.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from ringserve.server.devices import Inventory, Usage, find_devices, no_devices
from ringserve.server.nvml import Unreadable
from ringserve.server.placement import Placer
from ringserve.server.repository.threads import in_daemon_thread

logger = logging.getLogger("ringserve.devices")

FIND_S_MAX = 60.0  # a driver that nobody has loaded yet takes its time
LOOK_S_MAX = 2.0
WATCH_S = 5.0


class DeviceWatch:
    """Keeps the placer told of how full the devices are."""

    def __init__(self, inventory: Inventory) -> None:
        self.placer = Placer(inventory.devices, inventory.absent)
        self.placer.look_ends(self.placer.look_begins(), inventory.first_usage)
        self._inventory = inventory
        self._look: asyncio.Task[dict[str, Usage]] | None = None  # the one under way
        self._looked_s = float("-inf")  # when the last one began
        self._watch: asyncio.Task[None] | None = None
        self._complained = ""

    def start(self) -> None:
        """Look every few seconds, where there is anything to look at."""
        if self.placer.devices and self._watch is None:
            self._watch = asyncio.ensure_future(self._forever())

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def refresh(self, age_s_max: float = 0.0) -> None:
        """Return when the placer knows of a look that began within the last `age_s_max` seconds or later, or when looking
        takes too long."""
        if not self.placer.devices:
            return
        loop = asyncio.get_running_loop()
        wanted_s, end_s = loop.time() - age_s_max, loop.time() + LOOK_S_MAX
        while self._look is not None or self._looked_s < wanted_s:
            if self._look is None:
                self._begin(loop)
            assert self._look is not None
            # Of a look that should have ended long ago nobody expects anything.
            patience_s = min(end_s, self._looked_s + LOOK_S_MAX) - loop.time()
            if patience_s <= 0:
                return
            await asyncio.wait({self._look}, timeout=patience_s)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looked_s = loop.time()
        number = self.placer.look_begins()
        self._look = asyncio.ensure_future(in_daemon_thread(self._inventory.usage))
        self._look.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, look: "asyncio.Task[dict[str, Usage]]") -> None:
        self._look = None
        if look.cancelled():  # the server ends
            return
        complaint = ""
        try:
            usage: Mapping[str, Usage] = look.result()
        except Unreadable as error:
            complaint = str(error)
        else:
            self.placer.look_ends(number, usage)
        if complaint and complaint != self._complained:
            logger.warning("the devices cannot be read, and are taken to be as they were: %s", complaint)
        self._complained = complaint

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self.refresh(WATCH_S / 2)


async def open_devices(environ: Mapping[str, str], limit: int | None) -> DeviceWatch:
    """Find the devices and keep an eye on them. Raises `ConfigError` for a devices file that cannot be used."""
    finding = asyncio.ensure_future(in_daemon_thread(partial(find_devices, environ, limit)))
    done, _ = await asyncio.wait({finding}, timeout=FIND_S_MAX)
    if done:
        watch = DeviceWatch(finding.result())
    else:
        finding.cancel()
        reason = f"the driver did not answer within {FIND_S_MAX:.0f} s"
        logger.error("no GPUs: %s", reason)
        watch = DeviceWatch(no_devices(reason))
    watch.start()
    return watch
