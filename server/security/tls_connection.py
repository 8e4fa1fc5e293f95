"""TLS between a socket and the protocol above it.

    socket ─▶ RECEIVED ─▶ incoming ─▶ decrypted into what the protocol lends, or handed to it as bytes
    socket ◀── outgoing ◀── encrypted, a piece at a time as the socket takes it ◀── backlog ◀── what the protocol writes

The transport that uvloop makes for TLS does not fit what transfer.py builds on: it says that everything has left while the socket
still holds megabytes, cannot end one direction only, and waits for the client's farewell before it closes. This one behaves
as the transport of a plain connection does: writing is paused as long as anything is left of what was written, and memory
that is being sent is referred to until then.

A client that speaks HTTP without TLS is told so, as by TorchServe; one that does not finish its handshake is cut off.
"""

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringserve.server.security.tls import Tls

logger = logging.getLogger("ringserve.tls")

# Shared by all connections of the process: what is read is taken before anything else is read.
RECEIVED = memoryview(bytearray(256 << 10))
# What is encrypted at once: what one write to a socket takes, and all that a slow reader costs.
PIECE_BYTES = 256 << 10
RECORD_BYTES = 16 << 10
LINGER_S_MAX = 2.0
_BODY = b'{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n'
HTTPS_ONLY = (
    b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache; no-store, must-revalidate, private\r\nExpires: Thu, 01 Jan 1970 00:00:00 UTC\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
_WAITS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TlsConnection(asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of a socket's transport, and the transport of what `make` makes once the handshake is done."""

    def __init__(self, tls: "Tls", make: Callable[[], Any]) -> None:
        super().__init__()
        self._tls = tls
        self._make = make
        self._socket: Any = None  # its transport
        self._ssl: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._above: Any = None
        self._above_is_buffered = False
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = monotonic()
        self._backlog: deque[memoryview] = deque()
        self._socket_is_full = False
        self._writing_is_paused = False
        self._reading_is_paused = False
        self._ignoring = False  # nothing that still comes is looked at
        self._closing = False
        self._ends_writing = False
        self._has_said_farewell = False
        self._has_ended = False  # the client sends no more

    # ---- what the socket's transport says

    def connection_made(self, transport: Any) -> None:
        self._socket = transport
        transport.set_write_buffer_limits(0, 0)
        handshakes = self._tls.handshakes
        handshakes.add(self)
        if len(handshakes) > self._tls.handshakes_max:
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._tls.handshake_s_max, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = self._ignoring = True
        self._backlog.clear()
        self._end_handshake()
        # It refers to us as we do to it: without a cut, both would wait for the collector.
        above, self._above, self._ssl, self._make = self._above, None, None, _nothing
        if above is not None:
            above.connection_lost(exc)
        else:
            self._tls.on_failed()

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        if self._ignoring:
            return
        if self._ssl is None:
            if RECEIVED[0] in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":  # a method; TLS begins with 22
                self._refuse_plain()
                return
            self._ssl = self._tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(RECEIVED[:nbytes])
        if self._above is None:
            self._shake_hands()
        else:
            self._read()

    def eof_received(self) -> bool:
        if self._above is None:
            return False
        self._end_of_input()
        return True

    def pause_writing(self) -> None:
        self._socket_is_full = True
        self._control_writing()

    def resume_writing(self) -> None:
        self._socket_is_full = False
        self._pump()

    # ---- the beginning

    def _shake_hands(self) -> None:
        assert self._ssl is not None
        try:
            self._ssl.do_handshake()
        except _WAITS:
            self._send()
            return
        except OSError as error:
            logger.debug("a TLS handshake failed: %s", error)
            self._send()  # the alert says why
            self._ignoring = True
            self._socket.close()
            return
        self._send()
        self._end_handshake()
        self.set_protocol(self._make())
        self._above.connection_made(self)
        # What came with the end of the handshake is handed on when the protocol has begun, as on a plain connection.
        asyncio.get_running_loop().call_soon(self._read)

    def _end_handshake(self) -> None:
        self._tls.handshakes.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_plain(self) -> None:
        self._ignoring = True
        self._socket.write(HTTPS_ONLY)
        self._socket.write_eof()
        # It may still be sending; closing at once would take the answer away from it.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S_MAX, self._socket.close)

    def close_if_silent(self, silent_s_min: float) -> None:
        """Of a handshake: when nothing of it has come for so long."""
        if self._ssl is None and monotonic() - self._began_s > silent_s_min:
            self._socket.abort()

    # ---- what arrives

    def _read(self) -> None:
        try:
            while self._has_more() and (self._read_memory() if self._above_is_buffered else self._read_bytes()):
                pass
            self._answer_by_itself()
        except OSError as error:
            logger.debug("a TLS connection failed: %s", error)
            self.abort()

    def _answer_by_itself(self) -> None:
        """What TLS says without being asked to: an alert, or that keys change, which a client may ask for as often as it likes. One that
        does and reads none of it is not kept."""
        if self._closing or not self._outgoing.pending:
            return
        if not self._socket_is_full:
            self._send()
        elif self._outgoing.pending > RECORD_BYTES:
            self.abort()

    def _has_more(self) -> bool:
        if self._reading_is_paused or self._ignoring or self._closing or self._has_ended:
            return False
        return self._has_received()

    def _has_received(self) -> bool:
        assert self._ssl is not None
        return self._incoming.pending > 0 or self._ssl.pending() > 0

    def _read_memory(self) -> bool:
        """Into what the protocol lends; false when there is no more for now."""
        assert self._ssl is not None
        memory: memoryview = self._above.get_buffer(-1)
        count, waits, ended = 0, False, False
        while count < len(memory) and not (waits or ended) and self._has_received():
            try:
                got = self._ssl.read(len(memory) - count, memory[count:])
                ended = not got
                count += got  # type: ignore[operator]
            except _WAITS:  # for the rest of a record
                waits = True
        if count:
            self._above.buffer_updated(count)
        if ended:
            self._end_of_input()
        return count > 0 and not (waits or ended)

    def _read_bytes(self) -> bool:
        """All there is at once, for a request must come in one piece to go the short way; false when there is no more for now."""
        assert self._ssl is not None
        pieces, waits, ended = [], False, False
        while not (waits or ended) and self._has_received():
            try:
                piece = self._ssl.read(len(RECEIVED))
                ended = not piece
                pieces.append(piece)
            except _WAITS:
                waits = True
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if data:
            self._above.data_received(data)
        if ended:
            self._end_of_input()
        return not (waits or ended)

    def _end_of_input(self) -> None:
        if self._has_ended or self._closing:
            return
        self._has_ended = True
        if not self._above.eof_received():
            self.close()

    # ---- what leaves

    def _send(self) -> None:
        data = self._outgoing.read()
        if data:
            self._socket.write(data)

    def _pump(self) -> None:
        """Encrypt what the socket takes, and end what is to end."""
        try:
            if not self._socket_is_full:
                self._send()  # of what TLS itself had to say meanwhile
            while self._backlog and not self._socket_is_full:
                self._encrypt_piece()
                self._send()
        except OSError as error:
            logger.debug("a TLS connection failed: %s", error)
            self.abort()
            return
        if not self._backlog and not self._socket.is_closing():
            if self._closing:
                self._say_farewell()
                self._socket.close()
            elif self._ends_writing and not self._ignoring:
                self._ignoring = True
                self._say_farewell()
                self._socket.write_eof()
        self._control_writing()

    def _encrypt_piece(self) -> None:
        assert self._ssl is not None
        backlog, size = self._backlog, 0
        while backlog and size < PIECE_BYTES:
            view = backlog.popleft()
            if backlog and len(view) + len(backlog[0]) <= RECORD_BYTES:  # a head and a short body are one record
                backlog[0] = memoryview(bytes(view) + backlog[0])
                continue
            written = self._ssl.write(view[:PIECE_BYTES])
            size += written
            if written < len(view):
                backlog.appendleft(view[written:])

    def _control_writing(self) -> None:
        paused = self._socket_is_full or bool(self._backlog)
        if self._above is None or paused == self._writing_is_paused:
            return
        self._writing_is_paused = paused
        if paused:
            self._above.pause_writing()
        else:
            self._above.resume_writing()

    def _say_farewell(self) -> None:
        """That of the client is not waited for."""
        assert self._ssl is not None
        if self._has_said_farewell:
            return
        self._has_said_farewell = True
        with contextlib.suppress(OSError):
            self._ssl.unwrap()
        self._send()

    # ---- what the protocol above asks of its transport

    def set_protocol(self, protocol: Any) -> None:
        self._above = protocol
        self._above_is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> Any:
        return self._above

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._ssl if name == "ssl_object" else self._socket.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return not self._reading_is_paused

    def pause_reading(self) -> None:
        if not self.is_closing() and not self._reading_is_paused:
            self._reading_is_paused = True
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        if not self.is_closing() and self._reading_is_paused:
            self._reading_is_paused = False
            self._socket.resume_reading()
            asyncio.get_running_loop().call_soon(self._read)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """They are always none: what is written is referred to until it has left."""

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (0, 0)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._backlog)) + int(self._socket.get_write_buffer_size())

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        if self.is_closing() or self._ends_writing:
            return
        self._backlog.extend(memoryview(data).cast("B") for data in list_of_data if len(data))
        self._pump()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Say farewell when all has left. What the client still sends is read and not looked at: it can have no answer."""
        if not self.is_closing():
            self._ends_writing = True
            self._pump()

    def is_closing(self) -> bool:
        return self._closing or bool(self._socket.is_closing())

    def close(self) -> None:
        if not self.is_closing():
            self._closing = True
            self._socket.pause_reading()
            self._pump()

    def abort(self) -> None:
        self._closing = True
        self._backlog.clear()
        self._socket.abort()


def _nothing() -> None:
    """Nothing is made any more."""
