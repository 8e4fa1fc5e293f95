"""Block and wake across processes, counting.

A doorbell is a pipe: ringing writes one byte per entry, and what a read returns is how many entries there are to take. So
the count travels with the wake-up through the kernel, which also orders the memory behind it, and an idle listener sleeps.

Why a pipe (benchmarks/doorbell.py prints the table again): DOORBELL_FIGURES
"""

import os
from typing import NamedTuple

from ringserve.shm.shm_errors import PeerGone

# More entries than any ring holds: one read takes all there is.
COUNT_MAX = 4096
_ONE = b"\x01"


class DoorbellEnds(NamedTuple):
    """The two descriptors of a doorbell, for two processes. Both non-blocking, closed on exec."""

    ring_fd: int
    listen_fd: int


def make_doorbell() -> DoorbellEnds:
    listen_fd, ring_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return DoorbellEnds(ring_fd, listen_fd)


class Ringer:
    """The end that wakes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def ring(self) -> None:
        """Announce one entry. Raises `PeerGone` when nobody can hear it any more."""
        try:
            os.write(self.fd, _ONE)
        except BrokenPipeError:
            raise PeerGone("the listener closed its end of the doorbell") from None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Listener:
    """The end that sleeps: wait for `fd` to be readable, then `collect`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def collect(self) -> int:
        """How many entries were announced since the last call; 0 if none. Raises `PeerGone` once all are taken and the
        ringer is closed."""
        try:
            count = len(os.read(self.fd, COUNT_MAX))
        except BlockingIOError:
            return 0
        if count == 0:
            raise PeerGone("the ringer closed its end of the doorbell")
        return count

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
