"""What the services of a gRPC front end work with."""

from dataclasses import dataclass

from ringserve.server.open_inference.service import OpenInference
from ringserve.server.routes.forwarding import Forwarding
from ringserve.server.routing import RouteTable


@dataclass(frozen=True, slots=True)
class RpcContext:
    """What can be asked for now, and the supervisor's REST API on its private socket, which answers what is the supervisor's to know.
    `front_end` is the number of this one among all."""

    table: RouteTable
    forwarding: Forwarding
    server_version: str
    request_bytes_max: int
    open_inference: OpenInference
    front_end: int = 0
    write_timeout_s: int = 60
