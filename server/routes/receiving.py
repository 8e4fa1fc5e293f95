"""How bodies get from the socket to where they belong, without passing through a buffer of their own.

uvloop reads into memory that a buffered protocol lends it. While a body is being read, that is the memory of its landing (a row of
a slab, usually); a connection that has carried one such body keeps to a buffered protocol, and what is not a body is read
into a scratch of this process and handed on as bytes. A connection that never carries one never changes.

    kernel ─▶ row of the slab                        Content-Length
    kernel ─▶ scratch ─▶ landing                     what came with the head; the lines of a chunked body and its small chunks
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from ringserve.protocol.errors import BadRequest, BodyTooLarge, OutOfResources
from ringserve.server.landing import Landing, copy_into, too_large_text
from ringserve.shm.shm_errors import OutOfSharedMemory

# What is read before anybody knows what it is: a head, and as little of a body as may be. Shared by all connections, for every
# read is dealt with before the next.
SCRATCH = memoryview(bytearray(16 << 10))
# A chunk with less than this to come is read along with the line that follows it.
DIRECT_BYTES_MIN = 4 << 10
LINE_BYTES_MAX = 4 << 10
TRAILER_BYTES_MAX = 16 << 10


class Sink(Protocol):
    """Where the bytes of a connection go at the moment."""

    def memory(self) -> memoryview:
        """Where to read into; never empty."""

    def advance(self, count: int) -> bool:
        """So many bytes came; true when that was all."""


class SizedBody:
    """A body of known length."""

    __slots__ = ("_landing", "left")

    def __init__(self, landing: Landing, length: int) -> None:
        self._landing = landing
        self.left = length

    def memory(self) -> memoryview:
        memory = self._landing.memory()
        return memory if len(memory) <= self.left else memory[: self.left]

    def advance(self, count: int) -> bool:
        self._landing.advance(count)
        self.left -= count
        return not self.left

    def feed(self, data: bytes | bytearray | memoryview) -> int:
        """What was read before; how much of it belongs to the body."""
        count = min(len(data), self.left)
        copy_into(self._landing, memoryview(data)[:count])
        self.left -= count
        return count


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1). Extensions and trailers are read and ignored. `rest` is what came behind it."""

    __slots__ = ("_allowed", "_landing", "_left", "_line", "_stage", "_trailer_bytes", "done", "limit_bytes", "rest")

    def __init__(self, landing: Landing, limit_bytes: int) -> None:
        self._landing = landing
        self.limit_bytes = limit_bytes
        self._allowed = limit_bytes  # for the chunks to come
        self._left = 0  # of the present chunk
        self._line = bytearray()
        self._stage: Callable[[memoryview], memoryview] = self._size_line
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""

    def memory(self) -> memoryview:
        if self._left < DIRECT_BYTES_MIN:
            return SCRATCH
        memory = self._landing.memory()
        return memory if len(memory) <= self._left else memory[: self._left]

    def advance(self, count: int) -> bool:
        if self._left < DIRECT_BYTES_MIN:
            self.feed(SCRATCH[:count])
        else:
            self._landing.advance(count)
            self._left -= count
            if not self._left:
                self._stage = self._data_end
        return self.done

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes as they came. Raises `BadRequest`, and what the landing raises."""
        view = memoryview(data)
        while view and not self.done:
            view = self._stage(view)
        if view:
            self.rest = bytes(view)

    def _take_line(self, view: memoryview) -> tuple[bytes | None, memoryview]:
        """A line without its end, None as long as that has not come."""
        data = bytes(view[: LINE_BYTES_MAX + 2])
        end = data.find(b"\n")
        taken = data if end < 0 else data[: end + 1]
        self._line += taken
        if len(self._line) > LINE_BYTES_MAX:
            raise BadRequest(
                f"Body: expected lines between chunks of at most {LINE_BYTES_MAX} bytes, got a longer one."
            )
        rest = view[len(taken) :]
        if end < 0:
            return None, rest
        line, self._line = bytes(self._line), bytearray()
        if not line.endswith(b"\r\n"):
            raise BadRequest("Body: expected a chunk's line to end with CR LF, got LF alone.")
        return line[:-2], rest

    def _size_line(self, view: memoryview) -> memoryview:
        line, rest = self._take_line(view)
        if line is None:
            return rest
        digits = line.partition(b";")[0].strip(b" \t")
        if not 1 <= len(digits) <= 16 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
            raise BadRequest(
                f"Body: expected the size of a chunk in hexadecimal, got {digits[:32].decode('latin-1')!r}."
            )
        self._left = int(digits, 16)
        self._allowed -= self._left
        if self._allowed < 0:  # said before it has come
            raise BodyTooLarge(too_large_text(self.limit_bytes))
        self._stage = self._data if self._left else self._trailer
        return rest

    def _data(self, view: memoryview) -> memoryview:
        count = min(len(view), self._left)
        copy_into(self._landing, view[:count])
        self._left -= count
        if not self._left:
            self._stage = self._data_end
        return view[count:]

    def _data_end(self, view: memoryview) -> memoryview:
        line, rest = self._take_line(view)
        if line:
            raise BadRequest("Body: expected a chunk to end where its size says, got more bytes.")
        if line is not None:
            self._stage = self._size_line
        return rest

    def _trailer(self, view: memoryview) -> memoryview:
        line, rest = self._take_line(view)
        if line is None:
            return rest
        self._trailer_bytes += len(line)
        if self._trailer_bytes > TRAILER_BYTES_MAX:
            raise BadRequest(f"Body: expected at most {TRAILER_BYTES_MAX} bytes of trailers, got more.")
        self.done = not line
        return rest


class Discarded:
    """What a client sends of a body that was refused: read, so that it sees the refusal and no reset."""

    __slots__ = ()

    def memory(self) -> memoryview:
        return SCRATCH

    def advance(self, count: int) -> bool:
        return False


class Connection(Protocol):
    """What a reader belongs to: the rest of the protocol, on Sanic's terms."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Reader(asyncio.BufferedProtocol):
    """The transport's protocol of a connection that carries large bodies. With a `sink`, everything read goes there;
    `on_end(error)` is called when the sink has all it wants, or cannot go on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._on_end: Callable[[Exception | None], None] = lambda error: None
        self.sink: Sink | None = None

    def begin(self, sink: Sink, on_end: Callable[[Exception | None], None]) -> None:
        assert self.sink is None
        self.sink, self._on_end = sink, on_end

    def _end(self, error: Exception | None) -> None:
        self.sink = None
        self._on_end(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.sink is not None:
            try:
                return self.sink.memory()
            except OutOfSharedMemory as error:
                self._end(OutOfResources(f"The request does not fit into memory: {error}"))
        return SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        if self.sink is None:
            self._connection.data_received(bytes(SCRATCH[:nbytes]))
            return
        try:
            complete = self.sink.advance(nbytes)
        except OutOfSharedMemory as error:
            self._end(OutOfResources(f"The request does not fit into memory: {error}"))
        except Exception as error:  # noqa: BLE001 - whatever it was, the client gets an answer
            self._end(error)
        else:
            if complete:
                self._end(None)

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
