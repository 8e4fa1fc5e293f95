"""Block and wake across processes, counting.

A doorbell is a pipe: ringing writes one byte per entry, and what a read returns is how many entries there are to take. So
the count travels with the wake-up through the kernel, which also orders the memory behind it, and an idle listener sleeps.

Why a pipe. Round trips between two processes in µs, p50 / p99 of 10 000, two processors, Linux 6.18
(`python benchmarks/doorbell.py` prints the table again):

                            as placed     one CPU       two CPUs      ringing, nobody waiting
    pipe                    49.9 / 70.0   5.3 /  6.6    46.7 / 63.9   0.30
    eventfd                 46.5 / 62.6   4.7 /  5.7    45.4 / 59.3   0.27
    posix_ipc.Semaphore     46.4 / 59.1   4.5 /  6.7    45.7 / 58.5   0.04
    unix socket, stream     50.0 / 67.9   7.8 / 10.1    51.6 / 76.9   0.95
    unix socket, seqpacket  47.4 / 61.7   8.0 /  9.7    50.0 / 63.1   1.07

The wake-up of a sleeping processor costs the same whatever rings, so the deciding points are others: a pipe's end of file
tells each side that the other died, after everything it rang for (an eventfd and a semaphore stay silent), and an event
loop can wait on it (not on a semaphore). An empty batch through the whole worker loop takes 15 µs, since the scheduler
then keeps both ends on one processor (`python benchmarks/rings.py`).
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
