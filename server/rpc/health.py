"""`grpc.health.v1`: the server as a whole, its services, and every model, as `MODEL` and as `MODEL/VERSION`.

A listener of inference is SERVING when the server is ready (server/health.py), a model when it can answer. Whoever watches is told
when that changes. Asking needs no key, as on the routes of HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc_health.v1 import health_pb2

from ringserve.protocol.errors import NotFound, RingServeError
from ringserve.server.health import Health

Status = Any  # health_pb2.HealthCheckResponse.ServingStatus
SERVING: Status = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Status = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAME_CHARS_MAX = 256  # that an answer repeats


class HealthService:
    """`services` are the names of what its listener has; `health` is asked anew for every answer."""

    def __init__(self, services: list[str], health: Callable[[], Health]) -> None:
        self._services = services
        self._health = health
        self._changed = asyncio.Event()
        self._stopped = False

    def look(self) -> None:
        """Something may be different now."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def stop(self) -> None:
        """Nothing is served any more, and those who watch are told so."""
        self._stopped = True
        self.look()

    def status(self, service: str) -> Status:
        """SERVICE_UNKNOWN for what is neither a service nor a model."""
        health = self._health()
        if not service or service in self._services:
            ready = health.ready().ok
        else:
            name, slash, version = service.rpartition("/")
            try:
                try:
                    ready = health.ready(service).ok
                except RingServeError:
                    if not slash:
                        raise
                    ready = health.ready(name, version).ok
            except RingServeError:
                return SERVICE_UNKNOWN
        return SERVING if ready and not self._stopped else NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:
        """Raises `NotFound`."""
        status = self.status(request.service)
        if status == SERVICE_UNKNOWN:
            raise NotFound(f"unknown service: {request.service[:NAME_CHARS_MAX]}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """What it is, and what it becomes, until the server stops."""
        last = None
        while True:
            changed = self._changed
            status = self.status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._stopped:
                return
            await changed.wait()
