"""How front ends are started: those of HTTP first, those of gRPC behind them in the count, each with what it is told first."""

import os
import socket
from collections.abc import Callable

import msgspec

from ringserve.server.control import FrontEndMessage, ServeHttp, UseCertificate
from ringserve.server.process import ALLOCATOR, Child
from ringserve.server.rpc.starting import ENVIRONMENT, GrpcFrontEnds
from ringserve.server.rpc.starting import MODULE as GRPC_MODULE
from ringserve.server.security.tls import in_memory

HTTP_MODULE = "ringserve.server.frontend"


class FrontEndStarter:
    """`count` of them in all. Those of HTTP share the listening socket `sock`; those of gRPC open theirs."""

    def __init__(self, sock: socket.socket, first: ServeHttp, grpc: GrpcFrontEnds | None = None) -> None:
        self.count = first.front_ends
        self.http_count = self.count - (0 if grpc is None else grpc.count)
        self._socket = sock
        self._first = first
        self._grpc = grpc
        self._certificate: bytes | None = None  # with its private key, where they speak TLS
        self._http_tls = False

    def is_http(self, index: int) -> bool:
        return index < self.http_count

    def start(
        self,
        index: int,
        page_fd: int | None,
        on_message: Callable[[object, list[int]], None],
        on_exit: Callable[[], None],
    ) -> Child:
        """Number `index`. `page_fd`: where those of HTTP count their connections. Raises `OSError`."""
        http = self.is_http(index)
        child = Child(f"front-end-{index}" if http else f"grpc-front-end-{index}", FrontEndMessage)
        environment = {**ALLOCATOR, **({} if http else ENVIRONMENT), **os.environ, "PYTHONUNBUFFERED": "1"}
        child.start(HTTP_MODULE if http else GRPC_MODULE, environment, on_message, on_exit)
        if http:
            fds = [self._socket.fileno()] if page_fd is None else [self._socket.fileno(), page_fd]
            child.send(msgspec.structs.replace(self._first, index=index), fds)
        else:
            assert self._grpc is not None
            child.send(msgspec.structs.replace(self._grpc.first, index=index))
        return child

    def use_certificate(self, pem: bytes, *, http: bool) -> None:
        """From now on, those of HTTP only where `http` is true."""
        self._certificate, self._http_tls = pem, http

    def hand_certificate(self, index: int, child: Child) -> None:
        """To one that speaks TLS."""
        speaks = self._http_tls if self.is_http(index) else self._grpc is not None and self._grpc.first.tls
        if self._certificate is not None and speaks:
            fd = in_memory(self._certificate)
            child.send(UseCertificate(), (fd,))
            os.close(fd)
