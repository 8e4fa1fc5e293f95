"""A TLS connection of the server between a client of OpenSSL and a socket that a test decides about. Nothing is sent anywhere."""

import asyncio
import ssl
from typing import Any

from ringserve.server.security.tls import Tls
from ringserve.server.security.tls_connection import TlsConnection


class Socket:
    """The transport of the socket: takes what it is told to take."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.kept = bytearray()
        self.full = False
        self.closed = self.aborted = self.ended = self.reading_paused = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        assert not (self.closed or self.ended)
        if self.full:
            self.kept += data
            self.protocol.pause_writing()
        else:
            self.sent += data

    def take(self) -> None:
        """The client reads."""
        self.full = False
        self.sent += self.kept
        self.kept.clear()
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.kept)

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        assert (high, low) == (0, 0)

    def is_closing(self) -> bool:
        return self.closed

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 7)}.get(name, default)


class Plain(asyncio.Protocol):
    """A protocol above."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received: list[bytes] = []
        self.said: list[str] = []
        self.stays = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received.append(data)

    def eof_received(self) -> bool:
        self.said.append("eof")
        return self.stays

    def connection_lost(self, exc: Exception | None) -> None:
        self.said.append("lost")

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


class Lending(asyncio.BufferedProtocol):
    """A protocol that lends memory, as that of large bodies does."""

    def __init__(self, memory: bytearray, piece: int) -> None:
        self.memory, self.piece, self.at = memory, piece, 0
        self.counts: list[int] = []

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.memory)[self.at : self.at + self.piece]

    def buffer_updated(self, nbytes: int) -> None:
        self.at += nbytes
        self.counts.append(nbytes)

    def eof_received(self) -> bool:
        return True


class Conversation:
    """A connection of the server and a client's TLS, whose bytes go to and fro when `exchange` is called."""

    def __init__(self, tls: Tls, trust: ssl.SSLContext) -> None:
        self.above, self.socket = Plain(), Socket()
        self.connection = TlsConnection(tls, lambda: self.above)
        self.socket.protocol = self.connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trust.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.connection.connection_made(self.socket)

    def give(self, data: bytes) -> None:
        """To the server, as reads of its socket."""
        while data:
            memory = self.connection.get_buffer(-1)
            piece, data = data[: len(memory)], data[len(memory) :]
            memory[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))

    def exchange(self) -> None:
        data, self.socket.sent = bytes(self.socket.sent), bytearray()
        self._in.write(data)
        self.give(self._out.read())

    async def shake_hands(self) -> None:
        for _ in range(4):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange()
        self.exchange()
        await asyncio.sleep(0)
        assert self.above.transport is self.connection

    def say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.client.write(view) :]
        self.exchange()

    def hear(self) -> bytes:
        """All that the client can decrypt now; `b""` at the end is said by raising `ssl.SSLZeroReturnError` or by nothing."""
        self.exchange()
        heard = bytearray()
        while True:
            try:
                piece = self.client.read(1 << 20)
            except ssl.SSLWantReadError:
                break
            if not piece:
                break
            heard += piece
        return bytes(heard)
