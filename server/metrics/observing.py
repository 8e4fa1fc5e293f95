"""What the supervisor has for metrics: the pages of counters, and the scrape that puts everything together."""

import logging
import socket
from dataclasses import dataclass, field
from importlib.metadata import version as package_version

from ringserve.server.fleet import Fleet
from ringserve.server.management import Management
from ringserve.server.metrics.meter import Responses
from ringserve.server.metrics.pages import CounterPages
from ringserve.server.metrics.scrape import Scrape
from ringserve.server.metrics.serving import ServingMetrics
from ringserve.server.metrics.triton_names import TritonMetrics
from ringserve.server.settings import Settings
from ringserve.shm.shm_errors import OutOfSharedMemory

logger = logging.getLogger("ringserve.metrics")


@dataclass(slots=True)
class Metrics:
    """`responses` counts those of the supervisor's listeners; who has more to say at a scrape adds itself to `scrape`."""

    pages: CounterPages
    scrape: Scrape = field(default_factory=Scrape)
    responses: Responses = field(default_factory=Responses)

    def observe(self, management: Management, fleet: Fleet) -> None:
        """Say what these do."""
        serving = ServingMetrics(
            self.pages,
            management,
            self.responses,
            hostname=socket.gethostname(),
            server_version=package_version("ringserve"),
        )
        self.scrape.collectors.append(serving)
        if management.settings.nv_metrics:
            triton = TritonMetrics(self.pages, management.versions, management.versions.devices)
            self.scrape.collectors.append(triton)
            self.scrape.refreshers.append(triton.refresh)
        self.scrape.refreshers.append(fleet.count)


def open_metrics(settings: Settings, front_ends: int) -> Metrics | None:
    """None where metrics are switched off, or there is no memory for them: then nothing is measured."""
    if not settings.enable_metrics_api:
        return None
    try:
        return Metrics(CounterPages(front_ends))
    except OutOfSharedMemory as error:
        logger.error("there will be no metrics: %s", error)
        return None
