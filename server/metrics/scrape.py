"""One look at all metrics, in the supervisor: first what has to be fetched, then what everybody says, then the text."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from ringserve.server.metrics.exposition import collect, render
from ringserve.server.metrics.family import Collector

logger = logging.getLogger("ringserve.metrics")

# A scrape that takes longer than Prometheus waits is worth nothing; what is not here by then is told the next time.
REFRESH_S_MAX = 2.0


class Scrape:
    """Who takes part adds itself: a collector, and what must be waited for before any collector is asked."""

    def __init__(self) -> None:
        self.collectors: list[Collector] = []
        self.refreshers: list[Callable[[], Awaitable[None]]] = []

    async def text(self, wanted: Collection[str] = ()) -> bytes:
        """Everything, or only the samples with names that are `wanted`."""
        await self._refreshed()
        families = collect(self.collectors)
        return await asyncio.to_thread(render, families, wanted)  # thousands of lines, where there are many models

    async def _refreshed(self) -> None:
        work = [asyncio.ensure_future(refresh()) for refresh in self.refreshers]
        if not work:
            return
        _, late = await asyncio.wait(work, timeout=REFRESH_S_MAX)
        for task in late:
            task.cancel()
        for task in work:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                logger.error("not all metrics are up to date", exc_info=error)
