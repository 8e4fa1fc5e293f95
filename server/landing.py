"""Where the body of a request arrives while it is being read: its row in a slab, or what stands in for one.

    SlabLanding      the row itself; the kernel writes into it and nothing is copied
    GrowingLanding   memory of this process, then a spool (shm/spool.py): lengths that nobody knows, bodies larger than any slab,
                     and what comes while slow clients keep most slabs
    FormLanding      a form's parts, taken apart as they come
    BufferLanding    memory of this process: what must be looked at before it is a row (JSON for arrays, forms), or is short

Whoever reads asks for `memory`, writes there, and says how much with `advance`; at the end `commit` makes it a request that
waits, or `abandon` takes it back.
"""

import mmap
import os
from collections.abc import Callable
from typing import Protocol

from ringserve.protocol.errors import BadRequest, BodyTooLarge
from ringserve.protocol.request import InferRequest
from ringserve.server.forms import Buffer, FormParser, cut
from ringserve.server.inflight import Pending
from ringserve.shm.spool import Spool

# Set to 0, this makes bodies and answers pass through buffers of the event loop, as they did before there was another way: for
# measuring what the other way is worth.
SOCKET_TO_SLAB = os.environ.get("RINGSERVE_SOCKET_TO_SLAB") != "0"

# A body of unknown length begins in this process and moves out when it has become this long.
SPOOLED_BYTES_MIN = 256 << 10
_PIECE_BYTES = 64 << 10
_NOWHERE = memoryview(bytearray(_PIECE_BYTES))

Submit = Callable[[InferRequest, Spool | None], Pending]


class Landing(Protocol):
    """One body, of which so many bytes have been written."""

    received_bytes: int

    def memory(self) -> memoryview:
        """Where the next bytes go; never empty while bytes are expected. Raises `OutOfSharedMemory`."""

    def advance(self, count: int) -> None:
        """So many were written there."""

    def commit(self) -> Pending:
        """All of it is here. Raises what `Dispatcher.submit` raises."""

    def abandon(self) -> None:
        """It will not come."""


def copy_into(landing: Landing, data: bytes | bytearray | memoryview) -> None:
    """What was read elsewhere. Raises what the landing raises."""
    rest = memoryview(data)
    while rest:
        memory = landing.memory()
        count = min(len(memory), len(rest))
        memory[:count] = rest[:count]
        landing.advance(count)
        rest = rest[count:]


class SlabLanding:
    """A row, one place for each of its inputs."""

    __slots__ = ("_on_abandoned", "_on_landed", "_pending", "_place", "_rest", "received_bytes")

    def __init__(
        self,
        pending: Pending,
        places: list[memoryview],
        on_landed: Callable[[Pending], None],
        on_abandoned: Callable[[Pending], None],
    ) -> None:
        self._pending = pending
        self._rest = places[::-1]
        self._place = self._rest.pop()
        self._on_landed = on_landed
        self._on_abandoned = on_abandoned
        self.received_bytes = 0

    def memory(self) -> memoryview:
        return self._place

    def advance(self, count: int) -> None:
        self._place = self._place[count:]
        self.received_bytes += count
        while not self._place and self._rest:
            self._place = self._rest.pop()

    def commit(self) -> Pending:
        assert not self._place
        self._on_landed(self._pending)
        return self._pending

    def abandon(self) -> None:
        self._on_abandoned(self._pending)


class BufferLanding:
    """A body of known length, in this process."""

    __slots__ = ("_place", "_request", "_submit", "body", "received_bytes")

    def __init__(self, body_bytes: int, request: InferRequest | None = None, submit: Submit | None = None) -> None:
        # Of a long body no page is taken before its bytes have come.
        long = body_bytes >= SPOOLED_BYTES_MIN
        self.body: bytearray | memoryview = memoryview(mmap.mmap(-1, body_bytes)) if long else bytearray(body_bytes)
        self._place = memoryview(self.body)
        self._request = request
        self._submit = submit
        self.received_bytes = 0

    def memory(self) -> memoryview:
        return self._place

    def advance(self, count: int) -> None:
        self._place = self._place[count:]
        self.received_bytes += count

    def commit(self) -> Pending:
        assert self._request is not None
        assert self._submit is not None
        return self._submit(self._request._replace(body=self.body), None)

    def abandon(self) -> None:
        """Nobody else knows of it."""


class CallLanding(BufferLanding):
    """The body of a call of the Open Inference Protocol, which is read when it is whole."""

    __slots__ = ("_read",)

    def __init__(self, body_bytes: int, read: Callable[[memoryview], Pending]) -> None:
        super().__init__(body_bytes)
        self._read = read

    def commit(self) -> Pending:
        """Raises what reading and submitting it raise."""
        return self._read(memoryview(self.body))


class GrowingLanding:
    """A body of any length up to the limit: `limit_bytes` is `max_request_size`."""

    __slots__ = ("_body", "_limit_bytes", "_piece", "_request", "_spool", "_submit", "received_bytes")

    def __init__(
        self,
        limit_bytes: int,
        request: InferRequest | None = None,
        submit: Submit | None = None,
        *,
        spooled: bool = False,
    ) -> None:
        """Raises `OutOfSharedMemory` when it is to be spooled from the start."""
        self._limit_bytes = limit_bytes
        self._request = request
        self._submit = submit
        self._body = bytearray()
        self._piece = memoryview(bytearray(0 if spooled else _PIECE_BYTES))
        self._spool = Spool(None) if spooled else None
        self.received_bytes = 0

    def memory(self) -> memoryview:
        return self._piece if self._spool is None else self._spool.memory()

    def advance(self, count: int) -> None:
        """Raises `BodyTooLarge`, or `OutOfSharedMemory`."""
        self.received_bytes += count
        if self.received_bytes > self._limit_bytes:
            raise BodyTooLarge(too_large_text(self._limit_bytes))
        if self._spool is not None:
            self._spool.advance(count)
            return
        self._body += self._piece[:count]
        if len(self._body) >= SPOOLED_BYTES_MIN and self._submit is not None:
            self._spool = Spool(None)
            self._spool.write(self._body)
            self._body = bytearray()

    @property
    def body(self) -> bytearray:
        """Of a landing without a request, which never leaves this process."""
        assert self._spool is None
        return self._body

    def commit(self) -> Pending:
        assert self._request is not None
        assert self._submit is not None
        spool, self._spool = self._spool, None
        if spool is not None:
            return self._submit(self._request, spool)
        return self._submit(self._request._replace(body=self._body), None)

    def abandon(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


class FormLanding:
    """A multipart form of any length up to the limit: its parts are kept, and what is between them is not."""

    __slots__ = ("_limit_bytes", "_parser", "_piece", "_request", "_spool", "_submit", "received_bytes")

    def __init__(self, limit_bytes: int, request: InferRequest, submit: Submit, *, typed: bool) -> None:
        """`typed`: whether the model is. Raises `BadRequest` when the request's content type names no boundary."""
        self._limit_bytes = limit_bytes
        self._request = request
        self._submit = submit
        self._parser = FormParser(request.content_type, Buffer(), typed=typed)
        self._spool: Spool | None = None
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self.received_bytes = 0

    def memory(self) -> memoryview:
        return self._piece

    def advance(self, count: int) -> None:
        """Raises `BodyTooLarge`, `BadRequest` or `OutOfSharedMemory`."""
        self.received_bytes += count
        if self.received_bytes > self._limit_bytes:
            raise BodyTooLarge(too_large_text(self._limit_bytes))
        self._parser.feed(bytes(self._piece[:count]))
        store = self._parser.store
        if isinstance(store, Buffer) and store.written >= SPOOLED_BYTES_MIN:
            self._parser.store = self._spool = Spool(None)
            self._spool.write(store.data)

    def commit(self) -> Pending:
        try:
            parts = self._parser.finish()
        except BadRequest:
            self.abandon()
            raise
        store = self._parser.store
        if isinstance(store, Buffer):
            return self._submit(self._request._replace(parts=cut(parts, store.data)), None)
        spool, self._spool = self._spool, None
        return self._submit(self._request._replace(placed=parts), spool)

    def abandon(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


class NoLanding:
    """A body that nobody will look at."""

    __slots__ = ("received_bytes",)

    def __init__(self) -> None:
        self.received_bytes = 0

    def memory(self) -> memoryview:
        return _NOWHERE

    def advance(self, count: int) -> None:
        self.received_bytes += count

    def commit(self) -> Pending:
        raise AssertionError("what is thrown away is not waited for")

    def abandon(self) -> None:
        """Nothing was kept."""


def too_large_text(limit_bytes: int) -> str:
    return f"Body: the request is larger than {limit_bytes} bytes, the limit max_request_size."
