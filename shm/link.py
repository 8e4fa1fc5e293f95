"""A link: what one front end and one worker share besides the slabs.

Two rings in one page, a doorbell for each, a doorbell that says how many chunks of streamed answers have been passed on, and a
socket for parcels: one-off segments for payloads that do not fit into a slab. The creator makes a link for each (front end, worker process) and gives each side its end; a restarted worker gets
a fresh one, so a cursor never has two writers in its life.
"""

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from ringserve.shm.doorbell import DoorbellEnds, Listener, Ringer, make_doorbell
from ringserve.shm.layout import COMMANDS_AT, COMPLETIONS_AT, LINK_BYTES, LINK_MAGIC, check_header, write_header
from ringserve.shm.ring import Command, Completion, Consumer, Producer
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import OutOfSharedMemory, PeerGone, RingCorrupt
from ringserve.shm.spool import Spool

# Descriptors of one end, in the order they travel: rings, doorbell to ring, doorbell to listen to, parcel socket, credits.
END_FDS = 5
# How many chunks of streamed answers a worker may have on their way: with two finished batches, less than the ring holds.
CHUNK_CREDITS = 4


@dataclass(frozen=True, slots=True)
class LinkFds:
    """Both ends as descriptors, owned by whoever made them until they are sent."""

    front: tuple[int, ...]
    worker: tuple[int, ...]

    def close(self) -> None:
        for fd in (*self.front, *self.worker):
            os.close(fd)


def create_link() -> LinkFds:
    """Raises `OutOfSharedMemory`, or `OSError` when the process has no descriptors left."""
    with ExitStack() as made:  # and closed again when the rest cannot be made
        segment = Segment.create(LINK_BYTES)
        made.callback(segment.close)
        write_header(segment.view, LINK_MAGIC, 0)
        rings = [_kept(made, os.dup(segment.fd)) for _ in range(2)]
        commands, completions, credits = (DoorbellEnds(*(_kept(made, fd) for fd in make_doorbell())) for _ in range(3))
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        front, worker = (_kept(made, end.detach()) for end in pair)
        made.pop_all()
    segment.close()
    return LinkFds(
        front=(rings[0], commands.ring_fd, completions.listen_fd, front, credits.ring_fd),
        worker=(rings[1], completions.ring_fd, commands.listen_fd, worker, credits.listen_fd),
    )


def _kept(made: ExitStack, fd: int) -> int:
    made.callback(os.close, fd)
    return fd


class _LinkEnd:
    def __init__(self, fds: tuple[int, ...]) -> None:
        """Take over the descriptors. Raises `LayoutMismatch`."""
        assert len(fds) == END_FDS
        self._segment = Segment.attach(fds[0])
        self.memory = self._segment.view
        self.bell = Ringer(fds[1])
        self.listener = Listener(fds[2])
        self._parcels = socket.socket(fileno=fds[3])
        # A parcel is there before it is announced: nobody ever waits for one, least of all for one that a broken peer owes.
        self._parcels.setblocking(False)
        check_header(self.memory, LINK_MAGIC, 0)

    def send_parcel(self, parcel: Segment | Spool) -> None:
        """Hand over a one-off segment, before the entry that needs it is announced. Raises `PeerGone`; the socket holds more
        parcels than the batches that may be outstanding."""
        try:
            socket.send_fds(self._parcels, [b"p"], [parcel.fd])
        except (BrokenPipeError, ConnectionResetError, BlockingIOError) as error:
            raise PeerGone(f"the other end of the link takes no parcel: {error.strerror}") from None

    def receive_parcel(self) -> Segment:
        """The next one-off segment in the order they were sent. Raises `PeerGone`, `RingCorrupt` when the other end lives and owes
        it, or `OutOfSharedMemory` when this process has no room for it; it is gone then."""
        try:
            data, fds, _, _ = socket.recv_fds(self._parcels, 1, 1)
        except BlockingIOError:
            raise RingCorrupt("a parcel was announced and not sent") from None
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            raise PeerGone("a parcel was announced and none came")
        if not fds:
            # The kernel drops a descriptor for which this process has no room left.
            raise OutOfSharedMemory("a parcel came without its descriptor: this process has too many files open")
        try:
            return Segment.attach(fds[0])
        except (OSError, ValueError) as error:
            raise OutOfSharedMemory(f"a parcel cannot be mapped: {error}") from None

    def close(self) -> None:
        self.bell.close()
        self.listener.close()
        self._parcels.close()
        self._segment.close()


class FrontLink(_LinkEnd):
    """The front end's end: pushes commands, takes completions."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        super().__init__(fds)
        self.commands = Producer(self.memory, COMMANDS_AT, Command)
        self.completions = Consumer(self.memory, COMPLETIONS_AT, Completion)
        self.credits = Ringer(fds[4])  # one for each chunk passed on to its clients

    def close(self) -> None:
        self.credits.close()
        super().close()


class WorkerLink(_LinkEnd):
    """The worker's end: takes commands, pushes completions."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        super().__init__(fds)
        self.commands = Consumer(self.memory, COMMANDS_AT, Command)
        self.completions = Producer(self.memory, COMPLETIONS_AT, Completion)
        self.credits = Listener(fds[4])

    def close(self) -> None:
        self.credits.close()
        super().close()
