"""Payloads larger than a process should have mapped: written and read through a window.

A body of 2 GB does not fit into a slab, and a segment that holds it must not be mapped as a whole either: mapped pages of
shared memory count as resident memory of whoever touched them. A spool is written through a window that slides over a
nameless segment, so that a front end has a few MiB of it mapped at any time, and the worker, which needs all of it next to
each other, maps it as a `Segment`. `Windows` is the way back: an answer of any length, sent a window at a time.

A fresh window costs 0.23 ms for each MiB to reserve, 0.25 to touch, 0.05 to unmap (Linux 6.18): a window of 4 MiB keeps an
event loop for 1 ms at a time, and 2 GB pass in a second.
"""

import contextlib
import mmap
import os

from ringserve.shm.shm_errors import OutOfSharedMemory, RingCorrupt

WINDOW_BYTES = 4 << 20
# The first window of a spool whose length nobody has told: most of those are short. Each further one doubles what there is.
WINDOW_BYTES_FIRST = 64 << 10
_NOTHING = memoryview(b"")
_STEP = mmap.ALLOCATIONGRANULARITY  # mappings start at multiples of it

assert WINDOW_BYTES % _STEP == 0
assert WINDOW_BYTES_FIRST % _STEP == 0


class Spool:
    """A one-off segment on its way to another process. Fill what `memory` lends and say so with `advance`, then `finish`;
    `fd` is what travels. `size_bytes` is how much memory stands behind it, which after `finish` is what was written."""

    def __init__(self, size_bytes: int | None) -> None:
        """For exactly `size_bytes`, or for as much as comes. Raises `OutOfSharedMemory`."""
        assert size_bytes is None or size_bytes >= 0
        self.written = 0
        self.size_bytes = 0
        self._end = size_bytes
        self._map: mmap.mmap | None = None
        self._window = _NOTHING  # what is left of it is what the next bytes go into
        try:
            self.fd = os.memfd_create("ringserve", os.MFD_CLOEXEC)
        except OSError as error:
            raise OutOfSharedMemory(f"no segment for a payload can be made: {error.strerror}") from None

    def memory(self) -> memoryview:
        """Where the next bytes go, at most as many as are still expected; empty when all have come. Valid until the next
        call. Raises `OutOfSharedMemory`."""
        if not self._window and self.written != self._end:
            self._slide()
        return self._window

    def advance(self, count: int) -> None:
        """The first `count` bytes of `memory` are written."""
        assert 0 <= count <= len(self._window)
        self.written += count
        self._window = self._window[count:]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` behind what is there. Raises `OutOfSharedMemory`."""
        source = memoryview(data).cast("B")
        while source:
            memory = self.memory()
            assert memory, "more bytes came than were announced"
            count = min(len(memory), len(source))
            memory[:count] = source[:count]
            self.advance(count)
            source = source[count:]

    def finish(self) -> None:
        """Nothing more is written: what was reserved and not needed goes back. A segment holds at least one byte, for none
        can be mapped."""
        self._unmap()
        if self.size_bytes == 0:
            self._reserve(1)
        self.size_bytes = max(1, self.written)
        os.ftruncate(self.fd, self.size_bytes)

    def close(self) -> None:
        self._unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _slide(self) -> None:
        self._unmap()
        assert self.written == self.size_bytes, "a window is left when it is full"
        assert self.written % _STEP == 0, "only the last window ends within a page"
        length = min(WINDOW_BYTES, max(WINDOW_BYTES_FIRST, self.written))
        if self._end is not None:
            length = min(WINDOW_BYTES, self._end - self.written)
        self._reserve(length)
        try:
            self._map = mmap.mmap(self.fd, length, offset=self.written)
        except OSError as error:
            raise OutOfSharedMemory(f"{length} bytes of a payload cannot be mapped: {error.strerror}") from None
        self._window = memoryview(self._map)

    def _reserve(self, length: int) -> None:
        try:
            os.posix_fallocate(self.fd, self.size_bytes, length)
        except OSError as error:
            raise OutOfSharedMemory(
                f"a payload needs more than the {self.size_bytes} bytes of shared memory it has: {error.strerror}"
            ) from None
        self.size_bytes += length

    def _unmap(self) -> None:
        self._window = _NOTHING
        if self._map is not None:
            # Whoever still holds a view keeps this window mapped until it lets go.
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None


class Windows:
    """A part of a segment, mapped a window at a time and read only. The descriptor stays its owner's, and must outlive this."""

    def __init__(self, fd: int, at: int, length: int, window_bytes: int = WINDOW_BYTES) -> None:
        """Raises `RingCorrupt` when the segment does not hold this part: another process says where it lies."""
        assert window_bytes >= _STEP, "every window begins up to a page early"
        size_bytes = os.fstat(fd).st_size
        if at < 0 or length < 0 or at + length > size_bytes:
            raise RingCorrupt(f"bytes {at} to {at + length} were announced in a segment of {size_bytes} bytes")
        self._fd = fd
        self._at = at
        self._end = at + length
        self._window_bytes = window_bytes
        self._map: mmap.mmap | None = None
        self._view = _NOTHING

    @property
    def left(self) -> int:
        """How many bytes `next` has not given out yet."""
        return self._end - self._at

    def next(self) -> memoryview | None:
        """The next bytes, None after the last. Those before are unmapped: they must have been sent by now. Raises
        `OutOfSharedMemory` when the process has no address space or descriptor left."""
        self.close()
        if self._at == self._end:
            return None
        start = self._at - self._at % _STEP
        end = min(start + self._window_bytes, self._end)
        try:
            self._map = mmap.mmap(self._fd, end - start, prot=mmap.PROT_READ, offset=start)
        except OSError as error:
            raise OutOfSharedMemory(f"{end - start} bytes of a payload cannot be mapped: {error.strerror}") from None
        self._view = memoryview(self._map)[self._at - start :]
        self._at = end
        return self._view

    def close(self) -> None:
        """Unmap the current window; who still looks at it keeps it mapped. No error when there is none."""
        self._view = _NOTHING
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None
