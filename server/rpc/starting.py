"""What the supervisor needs to start gRPC front ends; it knows nothing else of gRPC."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ringserve.server.control import ServeHttp
from ringserve.server.rpc.messages import GrpcListener, GrpcOptions, ServeGrpc
from ringserve.server.settings import Settings

MODULE = "ringserve.server.rpc.frontend"
# Less is not worth a line of a user's log: its own complaints are about clients.
ENVIRONMENT = {"GRPC_VERBOSITY": "NONE"}


@dataclass(frozen=True, slots=True)
class GrpcFrontEnds:
    """So many of them, and what they are told first, but for their index."""

    count: int
    first: ServeGrpc


def grpc_front_ends(settings: Settings, sockets: Mapping[str, socket.socket], http: ServeHttp) -> GrpcFrontEnds | None:
    """None where gRPC is off. The addresses are those that the reserved `sockets` are bound to; what front ends of all kinds have in
    common is taken from the message to those of HTTP."""
    if not settings.enable_grpc:
        return None
    options = GrpcOptions(
        settings.grpc_keepalive_time_ms,
        settings.grpc_keepalive_timeout_ms,
        settings.grpc_keepalive_permit_without_calls,
        settings.grpc_http2_max_pings_without_data,
        settings.grpc_http2_min_recv_ping_interval_without_data_ms,
        settings.grpc_http2_max_ping_strikes,
        settings.grpc_compression,
        settings.grpc_reflection,
    )
    first = ServeGrpc(
        _listener(
            sockets["grpc_inference"],
            settings.grpc_inference_max_connection_age_ms,
            settings.grpc_inference_max_connection_age_grace_ms,
        ),
        _listener(
            sockets["grpc_management"],
            settings.grpc_management_max_connection_age_ms,
            settings.grpc_management_max_connection_age_grace_ms,
        ),
        http.request_bytes_max,
        http.server_version,
        http.front_ends,
        http.admin_socket,
        tokens=http.tokens,
        tls=settings.enable_grpc_ssl,
        options=options,
        access_log=http.access_log,
        log_format=http.log_format,
        server_id=http.server_id,
        extensions=http.extensions,
        strict_readiness=http.strict_readiness,
        write_timeout_s=http.write_timeout_s,
    )
    return GrpcFrontEnds(settings.grpc_frontends, first)


def _listener(sock: socket.socket, age_ms: int, grace_ms: int) -> GrpcListener:
    host, port, *_ = sock.getsockname()
    return GrpcListener(host, port, age_ms, grace_ms)
