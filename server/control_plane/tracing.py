"""Traces in the supervisor: it tells front ends what to trace, and writes down what they have traced.

A file is a JSON array at any moment, since whoever reads it may come before the server ends: what is added overwrites the bracket at its
end. With a log frequency of n there is one file for every n traces, `<file>.0` and so on; with 0 they all go into `<file>`.
"""

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from ringserve.protocol.errors import BadRequest
from ringserve.server.control_plane.trace_settings import TIMESTAMPS, Start, TraceSettings
from ringserve.server.messages import Message
from ringserve.server.trace_messages import SetTraces, Trace

logger = logging.getLogger("ringserve.trace")

TellAll = Callable[[Callable[[int], Message], Sequence[int]], Awaitable[object]]
STAMPS = (
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "REQUEST_END",
)
WAITING_MAX = 10_000  # traces that are not written yet


class Tracing:
    """`tell_all` reaches the front ends, once there are any; `knows` says whether there is such a model."""

    def __init__(self, start: Start, knows: Callable[[str], bool]) -> None:
        self.settings = TraceSettings(start)
        self.tell_all: TellAll | None = None
        self._knows = knows
        self._told = self.settings.rates()
        self._file = TraceFile(Path(start.file)) if start.file else None
        self._waiting: list[tuple[Trace, int]] = []
        self._work: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    def described(self, model: str) -> dict[str, Any]:
        """The settings of a model, or with "" those for all. Raises `BadRequest`."""
        self._check_known(model)
        return self.settings.of(model).described()

    async def update(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Raises `BadRequest` and `Unsupported`; then nothing has changed. Returns when all front ends do as it says."""
        self._check_known(model)
        now = self.settings.update(model, wanted)
        await self._tell()
        return now.described()

    def _check_known(self, model: str) -> None:
        if model and not self._knows(model):
            raise BadRequest(f"Request for unknown model : {model[:256]}")

    def equip(self, send: Callable[[Message, Sequence[int]], None], epoch: int) -> None:
        """Tell a front end that has just started."""
        if self._told != (0, {}):
            send(SetTraces(epoch, *self._told), ())

    async def _tell(self) -> None:
        rates = self.settings.rates()
        if rates != self._told:
            self._told = rates
            if self.tell_all is not None:
                await self.tell_all(lambda epoch: SetTraces(epoch, *rates), ())

    def heard(self, traces: Sequence[Trace], missed: int) -> None:
        """From a front end. What is over the count of traces is none; what cannot be written in time is lost."""
        if missed:
            logger.warning("%d requests were not traced: there were too many at a time", missed)
        for trace in traces:
            now = self.settings.of(trace.model)
            if now.level == TIMESTAMPS and len(self._waiting) < WAITING_MAX and self.settings.traced(trace.model):
                self._waiting.append((trace, now.log_frequency))
        if self.settings.rates() != self._told:  # that was the last one
            task = asyncio.ensure_future(self._tell())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        if self._waiting and (self._work is None or self._work.done()):
            self._work = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        while self._waiting and self._file is not None:
            waiting, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._file.add, waiting)
            except OSError as error:
                logger.error("traces cannot be written to %s: %s", self._file.path, error.strerror or error)

    async def close(self) -> None:
        """What has come is written."""
        if self._work is not None:
            await self._work


class TraceFile:
    """Where traces go. In any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._id = 0
        self._index = 0
        self._open: Path | None = None  # what is being written
        self._frequency = 0
        self._count = 0  # of traces in it

    def add(self, traces: Sequence[tuple[Trace, int]]) -> None:
        """Each with the log frequency that holds for it. Raises `OSError`."""
        lines: list[bytes] = []
        for trace, frequency in traces:
            if self._open is None or frequency != self._frequency or 0 < self._frequency <= self._count:
                self._flush(lines)
                self._next(frequency)
            self._id += 1
            self._count += 1
            lines += map(orjson.dumps, rendered(trace, self._id))
        self._flush(lines)

    def _next(self, frequency: int) -> None:
        """Go on in another file."""
        self._open = None  # until there is one
        path = self.path
        if frequency:
            path = self.path.with_name(f"{self.path.name}.{self._index}")
            self._index += 1
        fd = _opened(path)
        try:
            os.ftruncate(fd, 0)
            _write(fd, b"[]", 0)
        finally:
            os.close(fd)
        self._open, self._frequency, self._count = path, frequency, 0

    def _flush(self, lines: list[bytes]) -> None:
        """Whoever moved or emptied the file gets a new one; what a full disk cuts off is taken back."""
        if not lines or self._open is None:
            return
        fd = _opened(self._open)
        try:
            end = os.fstat(fd).st_size - 1
            if end < 1 or os.pread(fd, 1, end) != b"]":
                os.ftruncate(fd, 0)
                _write(fd, b"[]", 0)
                end = 1
            try:
                _write(fd, (b"," if end > 1 else b"") + b",".join(lines) + b"]", end)
            except OSError:
                os.ftruncate(fd, end)
                _write(fd, b"]", end)
                raise
        finally:
            os.close(fd)
        lines.clear()


def _opened(path: Path) -> int:
    """A descriptor for reading and writing, of a file that is made where there is none. Nobody waits for a pipe's other end: what is
    no file raises `OSError`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no file")
    return fd


def _write(fd: int, data: bytes, at: int) -> None:
    """All of it."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, at)
        at, rest = at + count, rest[count:]


def rendered(trace: Trace, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """As Triton's tools read them."""
    version: str | int = int(trace.version) if trace.version.isdecimal() else trace.version
    head = {"id": number, "model_name": trace.model, "model_version": version, "request_id": trace.request_id}
    stamps = [{"name": name, "ns": ns} for name, ns in zip(STAMPS, trace.times_ns, strict=True) if ns]
    return head, {"id": number, "timestamps": stamps}
