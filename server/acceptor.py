"""Who takes a new connection, when several front ends listen on one socket.

The kernel wakes all of them and the first one there takes it, which with little to do is always the same: its neighbours would see
no connection until it is busy. So each says how many it has, in a page that all can read, and one that has more than its part
leaves the next connection to the others for a millisecond. If none of them comes, it takes it after all.
"""

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from ringserve.shm.layout import QUEUE_LINE_WORDS, queue_count_at, queue_front_ends

logger = logging.getLogger("ringserve.http")

# More than the one with the fewest, by a quarter and this: a burst is spread in a few rounds.
AHEAD_MAX = 2
PATIENCE_S = 0.001
ACCEPTED_AT_ONCE = 16
# Without a descriptor left, accepting would fail as fast as it is tried.
SHORTAGE_S = 0.1
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# What stands in the line of a front end that does not run: nobody waits for it.
NOT_THERE = 1 << 62

# Classic BPF, which sees a packet from its TCP header on: one that asks for a new connection (SYN without ACK) is dropped.
_NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
_SO_ATTACH_FILTER = 26

Connect = Callable[[socket.socket], Coroutine[Any, Any, object]]


class Acceptor:
    """Accepts on a listening socket. `page` is shared by all front ends, of which this one is number `own`; `connect` makes a
    connection of an accepted socket."""

    def __init__(self, sock: socket.socket, page: memoryview, own: int, connect: Connect) -> None:
        self._sock = sock.dup()  # the event loop keeps the other for itself
        self._words = page.cast("Q")
        self._own_at = queue_count_at(own)
        self._counts = self._words[queue_count_at(0) : queue_count_at(queue_front_ends(page.nbytes)) : QUEUE_LINE_WORDS]
        self._own = own
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.count(0)

    def start(self) -> None:
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock.fileno(), self._on_readable, False)

    def count(self, connections: int) -> None:
        """This front end has so many now."""
        self._words[self._own_at] = connections

    def has_its_part(self) -> bool:
        """Whether another front end should take the next connection."""
        counts = self._counts.tolist()
        own = counts.pop(self._own)
        return own > min(counts) * 5 // 4 + AHEAD_MAX

    def _on_readable(self, has_waited: bool) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if not has_waited and self.has_its_part():
                self._pause(PATIENCE_S)
                return
            try:
                accepted, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORTAGE:
                    logger.error("no connection can be accepted: %s", error)
                    self._pause(SHORTAGE_S)
                    return
                continue  # a client that left before it was accepted
            accepted.setblocking(False)
            self._words[self._own_at] += 1
            task = self._loop.create_task(self._connect(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("an accepted connection was lost: %s", error)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable, False)
        self._on_readable(True)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._words[self._own_at] = NOT_THERE


def turn_away(sock: socket.socket) -> bool:
    """Let no new connections into the queue of a listening socket, so that it can be emptied before it is closed: the kernel resets
    what is in it then, with requests that clients have sent. Whether that could be done; it holds for all processes that have the
    socket."""
    if sock.family == socket.AF_UNIX:
        return True  # nobody finds it without its file, which has been removed
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _NO_NEW_CONNECTIONS))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_NEW_CONNECTIONS), ctypes.addressof(program))
        )
    except OSError as error:
        logger.info("connections cannot be turned away: %s", error)
        return False
    return True
