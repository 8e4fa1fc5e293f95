"""What is told beside the server's own counters: the metrics of handlers and of the machine, and the log of all metrics.

The default mode, `log`, writes to the files; `prometheus` leaves them empty. `/metrics` has everything in every mode: TorchServe's
is empty in all but one.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Iterable, Sequence

from ringserve.server.device_watch import DeviceWatch
from ringserve.server.metrics.catalogue import AsListed, Catalogue, Listed, open_catalogue
from ringserve.server.metrics.custom import CustomMetrics
from ringserve.server.metrics.exposition import collect
from ringserve.server.metrics.family import Collector, Family
from ringserve.server.metrics.metric_log import MetricLog
from ringserve.server.metrics.scrape import Scrape
from ringserve.server.metrics.system import SystemMetrics
from ringserve.server.settings import Settings

logger = logging.getLogger("ringserve.metrics")

# How often the server's own counters are looked at for the log. TorchServe's users add up its lines: no matter how many there are.
LOOK_S = 1.0


class Telemetry:
    """`scrape` already knows the server's own collectors; None: there are none. `custom` is to be told of what handlers emit."""

    def __init__(self, settings: Settings, devices: DeviceWatch, scrape: Scrape | None) -> None:
        catalogue = open_catalogue(settings.metrics_config)
        hostname = socket.gethostname()
        scrape = scrape or Scrape()
        writes = settings.metrics_mode != "prometheus"
        self._log = MetricLog(settings.metrics_location.absolute(), catalogue, writes=writes)
        self._server = [AsListed(each, catalogue) for each in scrape.collectors]
        self.custom = CustomMetrics(
            catalogue.handlers,
            hostname,
            every=settings.model_metrics_auto_detect,
            reserved=_reserved(scrape.collectors, catalogue),
            on_lines=self._log.emissions if writes else None,
        )
        self._system: SystemMetrics | None = None
        scrape.collectors[:] = [*self._server, self.custom, Listed(catalogue)]
        if not settings.disable_system_metrics:
            self._system = SystemMetrics(devices, hostname, settings.metric_time_interval_s)
            listed = AsListed(self._system, catalogue)
            self._system.on_measured = lambda: self._log.changes(collect([listed]), gauges_always=True)
            scrape.collectors.insert(0, listed)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Measure, and look."""
        if self._system is not None:
            self._tasks.append(asyncio.ensure_future(self._system.run()))
        if self._log.writes and self._server:
            self._tasks.append(asyncio.ensure_future(self._look_forever()))

    async def close(self) -> None:
        """What is not written yet is written."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._look()
        await asyncio.to_thread(self._log.close)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        if self._server:
            # What lies behind TorchServe's own takes much longer, where there are many models.
            self._log.changes(collect([_First(each) for each in self._server]))


class _First:
    """Of what a collector says the families with which it begins, which are TorchServe's."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def families(self) -> Iterable[Family]:
        return itertools.takewhile(lambda each: each.torchserve, self._collector.families())


def _reserved(collectors: Sequence[Collector], catalogue: Catalogue) -> set[str]:
    """The names that no handler's metric may have."""
    families = {each.name for each in collect(collectors)}
    return families | catalogue.torchserve.keys()
