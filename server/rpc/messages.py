"""What the supervisor tells a gRPC front end first. Imports nothing of gRPC: the supervisor reads it too."""

import msgspec

from ringserve.server.messages import Message


class GrpcListener(msgspec.Struct, frozen=True, array_like=True):
    """A numeric address and a port, which the supervisor holds for as long as it lives. Connections older than the age are told to
    come anew, and cut off when the grace is over as well; 0 is never."""

    host: str
    port: int
    connection_age_ms_max: int = 0
    connection_age_grace_ms: int = 0

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class GrpcOptions(msgspec.Struct, frozen=True, array_like=True):
    """How connections are treated. Milliseconds where a name ends in `_ms`; `compression` is `none`, `low`, `medium` or `high`, of
    answers to clients that take it. `reflection`: whether clients are told which services there are."""

    keepalive_time_ms: int = 7_200_000
    keepalive_timeout_ms: int = 20_000
    keepalive_permit_without_calls: bool = False
    http2_max_pings_without_data: int = 2
    http2_min_recv_ping_interval_without_data_ms: int = 300_000
    http2_max_ping_strikes: int = 2
    compression: str = "none"
    reflection: bool = True


class ServeGrpc(Message, frozen=True):
    """The first message to a gRPC front end, which is number `index` of the `front_ends` of any kind. Management is passed on to the
    `admin_socket`. With `tokens`, nobody is let in before `Keys` have come; with `tls`, nothing is served before
    `UseCertificate`. Each call is a line of the file `access_log`, where there is one. A client that takes no message of its
    stream for `write_timeout_s` is cut off. The last four are as in `ServeHttp`."""

    inference: GrpcListener
    management: GrpcListener
    request_bytes_max: int
    server_version: str
    front_ends: int
    admin_socket: str
    index: int = 0
    tokens: bool = False
    tls: bool = False
    options: GrpcOptions = GrpcOptions()
    access_log: str = ""
    log_format: str = "text"
    server_id: str = "ringserve"
    extensions: tuple[str, ...] = ()
    strict_readiness: bool = True
    write_timeout_s: int = 60
