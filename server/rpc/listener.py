"""The gRPC servers of a front end: one for inference and one for management, on ports that several front ends share (SO_REUSEPORT)."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from ringserve.protocol.errors import ShuttingDown
from ringserve.protocol.grpc import torchserve_open_inference_pb2
from ringserve.protocol.grpc.pool import POOL
from ringserve.server.control import Keys
from ringserve.server.front_end_core import FrontEndCore
from ringserve.server.logs.access import open_access_log
from ringserve.server.metrics.meter import Responses
from ringserve.server.open_inference.service import OpenInference
from ringserve.server.routes.forwarding import Forwarding
from ringserve.server.rpc.calls import Calls, Door, Services
from ringserve.server.rpc.context import RpcContext
from ringserve.server.rpc.health import HealthService
from ringserve.server.rpc.messages import GrpcListener, ServeGrpc
from ringserve.server.rpc.options import channel_arguments
from ringserve.server.rpc.services import INFERENCE, MANAGEMENT, AddService
from ringserve.server.rpc.statuses import plain_status
from ringserve.server.security.tokens import Gate

logger = logging.getLogger("ringserve.grpc")

# What reflection describes besides our own: that of gRPC's services, and one that no code of ours is made from.
POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
POOL.AddSerializedFile(reflection_pb2.DESCRIPTOR.serialized_pb)
assert torchserve_open_inference_pb2.DESCRIPTOR.pool is POOL
# A server that stops holds what comes for so long, looks that often whether all is answered, gives answers so long to leave, and what
# has been told that it gets none.
HOLD_S = 0.05
LOOK_S = 0.02
LINGER_S = 1.0
STOPPED_S = 0.5
STOPPED_S_MAX = 5.0


class Listening:
    """One server: what it serves, who is let in."""

    def __init__(
        self,
        first: ServeGrpc,
        listener: GrpcListener,
        services: Services,
        context: RpcContext,
        add: Sequence[AddService],
    ) -> None:
        self._listener = listener
        for each in add:
            each(services, context)
        table = context.table
        self.health = HealthService(services.names, lambda: table.health)
        services.add(health_pb2_grpc.add_HealthServicer_to_server, self.health, plain_status, guarded=False)
        if first.options.reflection:
            names = [*services.names, reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name]
            servicer = ReflectionServicer(names, pool=POOL)
            services.add(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer, plain_status)
        arguments = channel_arguments(first.options, listener, first.request_bytes_max)
        server: Any = grpc.aio.server(options=arguments)  # its published types are older than it
        for service, handlers in services.handlers.items():
            server.add_registered_method_handlers(service, handlers)
        self._server: grpc.aio.Server = server

    async def start(self, credentials: grpc.ServerCredentials | None) -> None:
        """Raises `OSError` when the port cannot be bound."""
        address = self._listener.address
        try:
            if credentials is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"{address} cannot be bound: {error}") from None
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """No new calls, and the end of those under way after the grace."""
        await self._server.stop(grace_s)


class GrpcTransport:
    """Both servers of a front end."""

    def __init__(self, core: FrontEndCore, first: ServeGrpc) -> None:
        core.table.front_ends = first.front_ends
        self._core = core
        self._first = first
        self._forwarding = Forwarding(Path(first.admin_socket), ())
        self._access = open_access_log(first.access_log, first.log_format)
        self._calls = Calls(self._access, first.write_timeout_s)
        self._certificate = b""  # with its private key
        service = OpenInference(
            core.table,
            first.server_id,
            first.server_version,
            first.extensions,
            core.regions,
            strict_readiness=first.strict_readiness,
        )
        context = RpcContext(
            core.table,
            self._forwarding,
            first.server_version,
            first.request_bytes_max,
            service,
            first.index,
            first.write_timeout_s,
        )
        self._inference, self._management = (Door(tokens=first.tokens) for _ in range(2))
        self._both = tuple(
            Listening(first, listener, Services(self._calls, door, self._management), context, add)
            for listener, door, add in (
                (first.inference, self._inference, INFERENCE),
                (first.management, self._management, MANAGEMENT),
            )
        )

    @property
    def connections(self) -> int:
        """gRPC does not tell: the calls that are under way."""
        return self._calls.running

    async def start(self) -> None:
        credentials = self._credentials() if self._first.tls else None
        for each in self._both:
            await each.start(credentials)
        logger.info(
            "gRPC: inference on %s, management on %s", self._first.inference.address, self._first.management.address
        )

    def routed(self) -> None:
        for each in self._both:
            each.health.look()

    def let_in(self, keys: Keys) -> None:
        self._inference.gate, self._management.gate = Gate(keys.inference), Gate(keys.management)

    def count(self, responses: Responses) -> None:
        self._calls.responses = responses

    def use_certificate(self, pem: bytes) -> None:
        self._certificate = pem
        self._credentials()  # what is none is found now

    def _credentials(self) -> grpc.ServerCredentials:
        """The certificate is asked for at each handshake."""

        def current() -> grpc.ServerCertificateConfiguration:
            key, chain = split_pem(self._certificate)
            return grpc.ssl_server_certificate_configuration([(key, chain)])

        return grpc.dynamic_ssl_server_credentials(current(), current)

    # ---- the end

    def answer_last(self) -> None:
        """Those who ask for its health are told; there is no last answer of a connection in HTTP/2."""
        self.routed()

    async def wind_down(self, deadline_s: float, unused_s: float, *, emptied: bool) -> None:
        """A server of gRPC that is stopped forgets calls that have just come. So they are held for a moment, in which those who ask
        without a break are held too; their connections are told to ask elsewhere, and then they are answered."""
        for each in self._both:
            each.health.stop()
        self._calls.hold()
        await asyncio.sleep(HOLD_S)
        end = time.monotonic() + deadline_s
        # Longer than the deadline: who is not answered by then is told why.
        stopping = [asyncio.ensure_future(each.stop(deadline_s + STOPPED_S_MAX)) for each in self._both]
        await asyncio.sleep(0)
        self._calls.release()
        self._forwarding.stop()
        while self._calls.running and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        # The last answers are on their way. A client that is gone without a word would be waited for until the deadline.
        await asyncio.wait(stopping, timeout=min(LINGER_S, max(0.0, end - time.monotonic())))

    async def cut_off(self, error: ShuttingDown) -> None:
        for each in self._both:
            await each.stop(STOPPED_S)

    def close(self) -> None:
        """Write what is left of the access log."""
        if self._access is not None:
            self._access.close()


def split_pem(pem: bytes) -> tuple[bytes, bytes]:
    """The private key, and the chain behind it."""
    at = pem.index(b"-----BEGIN CERTIFICATE-----")
    return pem[:at], pem[at:]
