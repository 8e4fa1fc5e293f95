"""The thread that writes log files, so that a slow disk, a full one or a console that nobody reads holds up nothing else.

What does not get written is counted. The first failure of a file is said on the console, and so is its end, with the count.
"""

import contextlib
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

BUFFER_BYTES_MAX = 8 << 20
BATCH_MAX = 256  # pieces that are put out at once
RETRY_S = 1.0
CLOSE_S_MAX = 5.0


logger = logging.getLogger("ringserve.logs")


class Target(Protocol):
    """Where lines go. Both raise nothing but `OSError`."""

    def write(self, lines: bytes) -> None: ...
    def close(self) -> None: ...


class Console:
    """Standard error, which others write to as well."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd

    def write(self, lines: bytes) -> None:
        """All of it, however long that takes."""
        view = memoryview(lines)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # whoever gave it to us wants never to wait for it
                select.select((), (self._fd,), ())

    def close(self) -> None:
        """It is not ours to close."""


def say_in_log(sentence: str) -> None:
    """For a log that others are told of by another."""
    logger.warning("%s", sentence)


def say_on_console(sentence: str) -> None:
    """What no log can be told. A console that is not there, or full, cannot be told either."""
    with contextlib.suppress(OSError):
        os.write(2, f"RingServe: {sentence}\n".encode(errors="backslashreplace"))


class Outlet:
    """One target of a writer: from any thread, never waiting, lines go in; the writer's thread puts them out."""

    def __init__(self, name: str, target: Target, writer: "Writer") -> None:
        self.name = name
        self.lost_lines = 0  # ever
        self._target = target
        self._writer = writer
        self._waiting_bytes = 0
        self._said_lines = 0  # of the lost ones, those that somebody was told of
        self._failing = False
        self._retry_s = 0.0
        self._lock = threading.Lock()

    def put(self, lines: bytes, count: int = 1) -> None:
        """`count` lines, each with its end."""
        with self._lock:
            if self._waiting_bytes + len(lines) > BUFFER_BYTES_MAX:
                self.lost_lines += count
                return
            self._waiting_bytes += len(lines)
        self._writer.pieces.put(_Piece(self, lines, count))

    def write(self, lines: bytes, count: int, now_s: float) -> None:
        """On the writer's thread alone."""
        with self._lock:
            self._waiting_bytes -= len(lines)
        if self._failing and now_s < self._retry_s:
            self._lose(count)
            return
        try:
            self._target.write(lines)
        except OSError as error:
            self._lose(count)
            self._retry_s = now_s + RETRY_S
            if not self._failing:
                self._failing = True
                self._writer.say(f"{self.name} cannot be written: {error}. The server goes on and tries again.")
            return
        self._failing = False
        lost = self.lost_lines - self._said_lines
        if lost:
            self._said_lines += lost
            self._writer.say(f"{self.name} is written again; {lost} lines are missing in it.")

    def close(self) -> None:
        """Say what was never said. On the writer's thread alone."""
        lost = self.lost_lines - self._said_lines
        if lost:
            self._writer.say(f"{self.name}: {lost} lines were not written.")
        self._target.close()

    def _lose(self, count: int) -> None:
        with self._lock:
            self.lost_lines += count


class _Piece(NamedTuple):
    outlet: Outlet
    lines: bytes
    line_count: int


class Writer:
    """A thread until it is closed, and the outlets that it serves. `say` tells people what goes wrong."""

    def __init__(self, name: str, say: Callable[[str], None] = say_in_log) -> None:
        self.pieces: queue.SimpleQueue[_Piece | threading.Event | None] = queue.SimpleQueue()
        self.say = say
        self._outlets: list[Outlet] = []
        # A daemon: a console that nobody reads must not keep the process.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def outlet(self, name: str, target: Target) -> Outlet:
        made = Outlet(name, target, self)
        self._outlets.append(made)
        return made

    def flush(self, timeout_s: float = CLOSE_S_MAX) -> None:
        """Wait until what was put in so far is out, but not for ever."""
        done = threading.Event()
        self.pieces.put(done)
        done.wait(timeout_s)

    def close(self, timeout_s: float = CLOSE_S_MAX) -> None:
        """Write what is left; a target that never takes it is left behind."""
        self.pieces.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        ended = False
        while not ended:
            taken = [self.pieces.get()]
            while len(taken) < BATCH_MAX and not self.pieces.empty():
                taken.append(self.pieces.get())
            by_outlet: dict[Outlet, list[_Piece]] = {}
            for piece in taken:
                if isinstance(piece, _Piece):
                    by_outlet.setdefault(piece.outlet, []).append(piece)
            for outlet, pieces in by_outlet.items():
                lines = b"".join([piece.lines for piece in pieces])
                outlet.write(lines, sum(piece.line_count for piece in pieces), time.monotonic())
            for piece in taken:
                if isinstance(piece, threading.Event):
                    piece.set()
            ended = None in taken
        for outlet in self._outlets:
            outlet.close()
