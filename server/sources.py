"""Bodies of answers that are sent straight from shared memory, or while they are being made (protocol/request.py: `Source`).

A worker writes the next part of every row's streamed answer as one chunk, and may have a few of them on their way. Each chunk is
a `Frame` here; when every client has taken its piece, the worker gets a credit back. A client that reads slowly thus slows
the model down instead of filling memory.
"""

import fcntl
import struct
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Source
from ringserve.shm.spool import Windows

if TYPE_CHECKING:
    import asyncio


def _nobody() -> None:
    """Nobody listens yet."""


class Held:
    """An answer that lies in shared memory. The memory is let go when it is closed, or forgotten by whoever had the answer."""

    __slots__ = ("_let_go", "_memory", "broken", "ended", "length", "on_change")

    def __init__(self, memory: bytes | memoryview, let_go: Callable[[], None]) -> None:
        self._memory: bytes | memoryview | None = memory
        self._let_go: Callable[[], None] | None = let_go
        self.length: int | None = len(memory)
        self.ended = self.broken = False
        self.on_change = _nobody

    def next(self) -> bytes | memoryview | None:
        part, self._memory, self.ended = self._memory, None, True
        return part

    def close(self) -> None:
        let_go, self._let_go, self._memory = self._let_go, None, None
        if let_go is not None:
            let_go()

    def __del__(self) -> None:
        self.close()


class Parts:
    """An answer of several pieces, some of which may lie in the memory of `source`, if there is one."""

    __slots__ = ("_parts", "_source", "broken", "ended", "length", "on_change")

    def __init__(self, parts: Sequence[bytes | bytearray | memoryview], source: Source | None = None) -> None:
        self._parts = deque(parts)
        self._source = source
        self.length: int | None = sum(map(len, parts))
        self.ended = self.broken = False
        self.on_change = _nobody

    def next(self) -> bytes | memoryview | None:
        if not self._parts:
            self.ended = True
            return None
        part = self._parts.popleft()
        return memoryview(part) if isinstance(part, bytearray) else part

    def close(self) -> None:
        self._parts.clear()
        source, self._source = self._source, None
        if source is not None:
            source.close()


class Windowed:
    """An answer too long to be mapped as a whole: a window of its segment at a time."""

    __slots__ = ("_let_go", "_windows", "broken", "ended", "length", "on_change")

    def __init__(self, windows: Windows, length: int, let_go: Callable[[], None]) -> None:
        self._windows = windows
        self._let_go: Callable[[], None] | None = let_go
        self.length: int | None = length
        self.ended = self.broken = False
        self.on_change = _nobody

    def next(self) -> bytes | memoryview | None:
        part = self._windows.next()
        self.ended = part is None
        return part

    def close(self) -> None:
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            self._windows.close()
            let_go()

    def __del__(self) -> None:
        self.close()


class Frame:
    """One chunk: how many of its pieces have not been taken yet."""

    __slots__ = ("_on_taken", "left")

    def __init__(self, pieces: int, on_taken: Callable[[], None]) -> None:
        self.left = pieces
        self._on_taken = on_taken

    def taken(self) -> None:
        """By one of its clients."""
        self.left -= 1
        if not self.left:
            self._on_taken()


class ReplyStream:
    """The answer of one row while it is being made."""

    __slots__ = ("_closed", "_on_forsaken", "_parts", "broken", "ended", "error", "length", "on_change")

    def __init__(self, on_forsaken: Callable[[], None]) -> None:
        self._parts: deque[tuple[bytes, Frame | None]] = deque()
        self._on_forsaken = on_forsaken
        self._closed = False
        self.length: int | None = None
        self.ended = self.broken = False
        self.error: RingServeError | None = None  # why it is broken, where somebody knows
        self.on_change = _nobody

    # ---- from the worker

    def feed(self, part: bytes | bytearray | memoryview, frame: Frame) -> None:
        """The next part. Nobody waits for it when the client is gone."""
        if self._closed or not part:
            frame.taken()
            return
        self._parts.append((bytes(part), frame))
        self.on_change()

    def finish(self, last: bytes) -> None:
        """The answer's last part; may be empty."""
        if last and not self._closed:
            self._parts.append((last, None))
        self.ended, self._on_forsaken = True, _nobody  # it leads back to the lane's memory
        self.on_change()

    def break_off(self, error: RingServeError | None = None) -> None:
        """The rest will never come."""
        self.ended = self.broken = True
        self.error = error
        self._on_forsaken = _nobody
        self.on_change()

    # ---- to the client

    def next(self) -> bytes | None:
        if not self._parts:
            return None
        part, frame = self._parts.popleft()
        if frame is not None:
            frame.taken()
        return part

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        while self.next() is not None:
            pass
        on_forsaken, self._on_forsaken = self._on_forsaken, _nobody
        if not self.ended:
            on_forsaken()

    def __del__(self) -> None:
        self.close()


def untaken_bytes(transport: "asyncio.Transport") -> int:
    """What of an answer the client has not taken: also what the kernel holds, whose buffer may be megabytes. It asks for more
    only when a good part of them is gone, which takes a slow reader longer than a silent one is given."""
    left = transport.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return left
    return left + int(struct.unpack("i", queued)[0])
